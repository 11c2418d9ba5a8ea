"""The quickstart: two acts, one report. See `fedrag quickstart --help`."""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from fedrag.durable import replace_text
from fedrag.evaluation import Metric, Report, summarize
from fedrag.evaluation.comparison import table
from fedrag.quickstart import loop, retrieval
from fedrag.quickstart.world import make_world
from fedrag.rag import RAGSystem

Reports = Mapping[str, Mapping[str, Report]]
"""By regime, then by setting."""

_COMPARED = (
    # what is shown, regime after, regime before, setting, metric
    ("RALT reads: gold among four", "RALT", "frozen", loop.AMONG_FOUR, "exact_match"),
    ("LSR finds: first passage", "LSR, frozen reader", "frozen", loop.END_TO_END, "recall@1"),
    ("RALT, then LSR: end to end", "RALT, then LSR", "frozen", loop.END_TO_END, "exact_match"),
    ("real text: first passage", "contrastive", "untrained", retrieval.SETTING, "recall@1"),
)


def run(
    out: Path, *, quick: bool = False, seeds: int = 1, encoder: str | None = None, controls: bool = False
) -> dict[str, Any]:
    """Run both acts for each seed, print the tables, write `report.json` into `out`; return its content.

    Args:
        out: folder of the report.
        quick: fewer steps and questions: shows that everything works, not what it can do.
        seeds: runs; the figures pool their questions.
        controls: train the control regimes as well, which doubles the time.
        encoder: a sentence-transformers name or folder to tune in act A in place of the one made from scratch.
    """
    started = time.time()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft's, not the reader's concern
    real: list[Reports] = []
    invented: list[Reports] = []
    tuned: list[RAGSystem] = []
    real_seconds = invented_seconds = 0.0
    tqdm.write("Act A. Real text: find the documentation that a summary sentence belongs to.")
    text = retrieval.collect(quick=quick)
    for seed in range(seeds):
        began = time.time()
        real.append(retrieval.run_regimes(text, seed, quick=quick, encoder=encoder, announce=_announce))
        real_seconds += time.time() - began
    tqdm.write(
        "Act B. An invented world (synthetic): retrieve, read, answer; a tiny language model (0.65 million weights)."
    )
    for seed in range(seeds):
        began = time.time()
        world = make_world(seed, train=20, dev=2, test=6) if quick else make_world(seed)
        steps = loop.Steps(ralt=30, lsr=20) if quick else loop.Steps()
        reports, system = loop.run_regimes(world, seed, steps, world.test, _announce, controls=controls)
        invented.append(reports)
        tuned.append(system)
        invented_seconds += time.time() - began
    pooled = {"act A": _pool(real, "module"), "act B": _pool(invented, "entity")}
    content = _content(pooled, quick, seeds)
    content["seconds"] = {
        "act A": round(real_seconds, 1),
        "act B": round(invented_seconds, 1),
        "all": round(time.time() - started, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    tuned[-1].save(out / "system")
    replace_text(out / "report.json", json.dumps(content, indent=1) + "\n")
    print(_tables(pooled, content))
    print(_asked(invented[-1]))
    threads = torch.get_num_threads()
    print(f"\n{content['seconds']['all']:.0f} s on {threads} threads; every figure: {out / 'report.json'}")
    print(f'the tuned system answers, too: fedrag ask {out / "system"} "{_question(invented[-1])}"')
    return content


def _announce(regime: str) -> None:
    tqdm.write(f"  {regime}")


def _pool(runs: Sequence[Reports], cluster: str) -> dict[str, dict[str, Report]]:
    """The seeds' records together: intervals over questions and seeds, what belongs together resampled together."""
    records: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for reports in runs:
        for regime, settings in reports.items():
            for setting, report in settings.items():
                records[regime, setting] += report.records
    pooled: dict[str, dict[str, Report]] = defaultdict(dict)
    for (regime, setting), rows in records.items():
        pooled[regime][setting] = summarize(rows, cluster=cluster)
    return dict(pooled)


def _content(pooled: Mapping[str, Reports], quick: bool, seeds: int) -> dict[str, Any]:
    """What goes into the report file."""
    packages = ("fedrag", "torch", "transformers", "sentence-transformers")
    everything = {regime: settings for act in pooled.values() for regime, settings in act.items()}
    compared: list[dict[str, Any]] = []
    for what, after, before, setting, metric in _COMPARED:
        difference = everything[after][setting].compare(everything[before][setting]).differences[metric]
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
    }


def _tables(pooled: Mapping[str, Reports], content: Mapping[str, Any]) -> str:
    names = ("recall@1", "recall@10", "mrr@10")
    real: list[tuple[str, ...]] = [("real text", *names)]
    for regime, settings in pooled["act A"].items():
        metrics = settings[retrieval.SETTING].metrics
        real.append((regime, *(_cell(metrics[name]) for name in names)))
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
    return "\n".join(
        [
            f"\nAct A, real text: {n['act A']:,} held-out questions{runs}, share found (95 % interval)",
            table(real),
            f"\nAct B, invented world: {n['act B']:,} held-out questions{runs}, exact match of generated answers",
            "(recall@1: the gold passage came first; end to end: the reader gets that first passage)",
            table(loops),
            "",
            table(compared),
        ]
    )


def _asked(reports: Reports) -> str:
    """The first held-out question, before and after."""
    before, after = (reports[regime][loop.END_TO_END].records[0] for regime in ("frozen", "RALT, then LSR"))
    old, new = (f"{record.answer!r} from {record.hits[0]}" for record in (before, after))
    example = after.example
    return f"\nAsked: {example.question}  (gold: {', '.join(example.answers or ())})\n  before: {old}\n  after:  {new}"


def _question(reports: Reports) -> str:
    return reports["RALT, then LSR"][loop.END_TO_END].records[0].example.question


def _cell(metric: Metric) -> str:
    return f"{metric.mean:.3f} {metric.low:.2f}-{metric.high:.2f}"
