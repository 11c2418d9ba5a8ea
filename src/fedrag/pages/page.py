"""The report page: one HTML file that needs nothing else, from the reports before and after and what lies between.

    fedrag report page.html --before before.json --after after.json --log run.jsonl --system my-rag-tuned

The file asks for nothing from outside, and forbids itself to: its style and its few lines of script are inside it and
named by their hashes in its content security policy. Without the script it can be read all the same.

>>> import tempfile
>>> from fedrag.evaluation import Record, summarize
>>> from fedrag.types import Example
>>> ask = Example("Capital of France?", ["Paris"])
>>> before, after = (summarize([Record(ask, {"f1": f1}, text)]) for f1, text in [(0.0, "Lyon"), (1.0, "Paris")])
>>> written = write_page(Path(tempfile.mkdtemp()) / "page.html", before=before, after=after)
>>> written.became_right, "<script>alert" in written.path.read_text()
(1, False)
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedrag import __version__
from fedrag.durable import replace_text
from fedrag.errors import ConfigError, InputError
from fedrag.evaluation import Report
from fedrag.federated.history import History
from fedrag.pages import charts, curves
from fedrag.pages.figures import compared, means, styles, subgroups
from fedrag.pages.flips import Passages, flips

_HERE = Path(__file__).parent
_FIRST = 4  # charts of a log that stand open; the others are behind a line
_CHARTS = 40  # of a log: a callback may have logged a number per layer
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that no HTML file may hold; a model's output and a damaged document may."""


@dataclass(frozen=True, slots=True)
class Written:
    """A page: its file and size, the questions that flipped, and how many of those the page shows."""

    path: Path
    bytes: int
    became_right: int
    became_wrong: int
    shown: int


def write_page(
    path: str | Path,
    *,
    after: Report,
    before: Report | None = None,
    more: Mapping[str, Report] | None = None,
    log: Iterable[Mapping[str, Any]] = (),
    history: History | None = None,
    store: Passages | None = None,
    metric: str | None = None,
    by: str | None = None,
    shown: int = 100,
    title: str = "Evaluation report",
    about: Mapping[str, str] | None = None,
) -> Written:
    """Write the page of a run, whole or not at all.

    Args:
        path: the HTML file; its folder is made.
        after: the report that the page is about.
        before: the report that it is compared with, on the same questions; without it no question flips.
        more: further reports by name, each compared with `before` where that is given.
        log: entries with a `step`, as `trainer.state.log_history` has them; see `fedrag.pages.curves`.
        history: of a federated run.
        store: where the texts of passages are; without it their ids are shown.
        metric: decides which questions are right (0.5 or more); by default the first of `exact_match`, `f1` and the
            deepest recall that changed for any question.
        by: a metadata key of the examples: the metric for each of its values. By default the reports' cluster.
        shown: questions that became right, and as many that became wrong, that the page holds at most.
        title: of the page.
        about: what else was run, by name: settings, fingerprints.

    Raises `ConfigError` for a metric or key that the reports do not have, and `InputError` for reports on different
    questions, or a path that cannot be written.
    """
    if shown < 0:
        raise InputError(f"shown is a number of questions, at least 0, got {shown}")
    chosen = _metric(metric, after, before)
    reports = {**({"before": before} if before else {}), "after": after, **(more or {})}
    if len(reports) < bool(before) + 1 + len(more or {}):
        raise InputError("a further report is named 'before' or 'after', which the page has already; name it otherwise")
    comparisons = (
        {} if before is None else compared(before, reports)
    )  # which finds out whether the questions are the same
    found = () if before is None else flips(before.records, after.records, chosen, shown=shown, store=store)
    groups, group_count = subgroups(after, before, chosen, by)
    logged = curves.learning(log, f"eval_{chosen}")
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    content = {
        "title": title,
        "line_class": charts.style,
        "draw_lines": charts.lines,
        "draw_intervals": charts.intervals,
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "style": Markup(style),
        "script": Markup(script),
        "reports": reports,
        "metric": chosen,
        "means": means(reports),
        "compared": comparisons,
        "styles": styles(reports),
        "recall": curves.recalls(reports, styles(reports)),
        "learning": logged[:_FIRST],
        "aside": logged[_FIRST:_CHARTS],
        "undrawn": len(logged[_CHARTS:]),
        "federated": curves.rounds(history) if history else [],
        "history": history,
        "history_rows": [*history.rounds, *([history.closing] if history.closing else [])] if history else [],
        "flips": found,
        "texts": store is not None,
        "groups": groups,
        "group_count": group_count,
        "by": by or after.cluster,
        "about": {**(about or {}), "fedrag": __version__},
    }
    html = _UNSAFE.sub("\ufffd", _template().render(content))
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, html)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give the path of a file, new or to replace"
        ) from None
    right, wrong = (kind.count for kind in found) if found else (0, 0)
    return Written(path, path.stat().st_size, right, wrong, sum(len(kind.shown) for kind in found))


def _metric(metric: str | None, after: Report, before: Report | None) -> str:
    names = dict.fromkeys(name for record in after.records for name in record.values)
    if before is not None:
        old = {name for record in before.records for name in record.values}
        names = [name for name in names if name in old]
    if metric is not None and metric not in names:
        raise ConfigError(f"metric {metric!r} is not in the reports; they have {', '.join(names) or 'none in common'}")
    if not names:
        raise InputError("the reports have no metric in common; evaluate both on the same examples")
    recalls = [name for name in names if name.startswith("recall@")]
    wanted = ["exact_match", "f1", *recalls[::-1], *names]
    known = [name for name in wanted if name in names]
    return metric or next((name for name in known if before and _changed(name, before, after)), known[0])


def _changed(metric: str, before: Report, after: Report) -> bool:
    """Whether any question's value did; reports on other questions are refused later, with the reason."""
    pairs = zip(before.records, after.records, strict=False)
    return any(old.values.get(metric) != new.values.get(metric) for old, new in pairs)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
