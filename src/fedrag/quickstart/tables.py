"""What the quickstart tells: the content of its report file, and the tables on the screen."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fedrag.evaluation import Metric, Report
from fedrag.evaluation.comparison import table
from fedrag.quickstart import loop, retrieval

if TYPE_CHECKING:
    from fedrag.federated.history import History

Reports = Mapping[str, Mapping[str, Report]]
"""By regime, then by setting."""

_COMPARED = (
    # what is shown, act, regime after, regime before, setting, metric
    ("RALT reads: gold among four", "act B", "RALT", "frozen", loop.AMONG_FOUR, "exact_match"),
    ("LSR finds: first passage", "act B", "LSR, frozen reader", "frozen", loop.END_TO_END, "recall@1"),
    ("RALT, then LSR: end to end", "act B", "RALT, then LSR", "frozen", loop.END_TO_END, "exact_match"),
    ("real text: first passage", "act A", "contrastive", "untrained", retrieval.SETTING, "recall@1"),
)
_FEDERATED, _CENTRALIZED, _ALONE = "federated", "centralized", " alone"


def content(pooled: Mapping[str, Reports], histories: Sequence[History], *, quick: bool, seeds: int) -> dict[str, Any]:
    """What goes into the report file."""
    packages = ("fedrag", "torch", "transformers", "sentence-transformers")
    compared: list[dict[str, Any]] = []
    for what, act, after, before, setting, metric in _comparisons(pooled):
        difference = pooled[act][after][setting].compare(pooled[act][before][setting]).differences[metric]
        compared.append({"what": what, "metric": metric, "setting": setting, **asdict(difference)})
    unseen = {
        regime: asdict(report.subset(lambda record: bool(record.example.metadata["held_out"])).metrics["exact_match"])
        for regime, settings in pooled["act B"].items()
        for setting, report in settings.items()
        if setting == loop.END_TO_END
    }
    return {
        "quick": quick,
        "seeds": seeds,
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "metrics": {
            act: {
                regime: {s: {name: asdict(m) for name, m in report.metrics.items()} for s, report in settings.items()}
                for regime, settings in reports.items()
            }
            for act, reports in pooled.items()
        },
        "answers never seen in training, end to end": unseen,
        "compared": compared,
        "federations": [history.to_json() for history in histories],
        "bytes travelled": [history.bytes for history in histories],
    }


def text(pooled: Mapping[str, Reports], content: Mapping[str, Any]) -> str:
    """The tables."""
    loops: list[tuple[str, ...]] = [("invented world", "recall@1", *loop.SETTINGS)]
    for regime, settings in pooled["act B"].items():
        found = settings[loop.END_TO_END].metrics["recall@1"]
        cells = [_cell(settings[s].metrics["exact_match"]) if s in settings else "" for s in loop.SETTINGS]
        loops.append((regime, _cell(found), *cells))
    compared: list[tuple[str, ...]] = [("what the training did", "before", "after", "difference", "p")]
    for row in content["compared"]:
        interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        p = "<0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        compared.append((row["what"], f"{row['before']:.3f}", f"{row['after']:.3f}", interval, p))
    seeds = content["seeds"]
    n = {act: len(next(iter(next(iter(r.values())).values())).records) // seeds for act, r in pooled.items()}
    runs = f", {seeds} seeds" if seeds > 1 else ""
    lines = [
        f"\nAct A, real text: {n['act A']:,} held-out questions{runs}, share found (95 % interval)",
        table(_retrieval("real text", pooled["act A"])),
        f"\nAct B, invented world: {n['act B']:,} held-out questions{runs}, exact match of generated answers",
        "(recall@1: the gold passage came first; end to end: the reader gets that first passage)",
        table(loops),
    ]
    if "act C" in pooled:
        last = content["federations"][-1]["rounds"]
        lines += [
            f"\nAct C, federated: {n['act C']:,} held-out questions{runs} over the passages of {len(last[0]['sites'])} "
            f"sites; {len(last)} rounds, {content['bytes travelled'][-1] / 1e6:.0f} MB of weights travelled, no text",
            table(_retrieval("sites", pooled["act C"])),
        ]
    return "\n".join([*lines, "", table(compared)])


def asked(reports: Reports) -> str:
    """The first held-out question, before and after."""
    before, after = (reports[regime][loop.END_TO_END].records[0] for regime in ("frozen", "RALT, then LSR"))
    old, new = (f"{record.answer!r} from {record.hits[0]}" for record in (before, after))
    example = after.example
    return f"\nAsked: {example.question}  (gold: {', '.join(example.answers or ())})\n  before: {old}\n  after:  {new}"


def question(reports: Reports) -> str:
    """A question that the tuned system can be asked."""
    return reports["RALT, then LSR"][loop.END_TO_END].records[0].example.question


def _comparisons(pooled: Mapping[str, Reports]) -> Iterator[tuple[str, str, str, str, str, str]]:
    yield from _COMPARED
    if reports := pooled.get("act C"):
        setting = next(iter(reports[_FEDERATED]))
        alone = [regime for regime in reports if regime.endswith(_ALONE)]
        best = max(alone, key=lambda regime: reports[regime][setting].metrics["recall@1"].mean)
        yield f"federated over {best}, the best", "act C", _FEDERATED, best, setting, "recall@1"
        yield "federated over centralized", "act C", _FEDERATED, _CENTRALIZED, setting, "recall@1"


def _retrieval(title: str, reports: Reports) -> list[tuple[str, ...]]:
    names = ("recall@1", "recall@10", "mrr@10")
    rows: list[tuple[str, ...]] = [(title, *names)]
    for regime, settings in reports.items():
        metrics = next(iter(settings.values())).metrics
        rows.append((regime, *(_cell(metrics[name]) for name in names)))
    return rows


def _cell(metric: Metric) -> str:
    return f"{metric.mean:.3f} {metric.low:.2f}-{metric.high:.2f}"
