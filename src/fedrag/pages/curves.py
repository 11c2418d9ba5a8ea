"""Curves from what a run left: a training log, a federated history, the rankings of a report.

Two logs are read: `trainer_state.json`, which transformers' Trainer leaves in every checkpoint, and a `.jsonl` file
whose rows are its log entries, each with a `step` and, in a run of several stages, a `stage`, as `fedrag train`
writes them:

    {"stage": 1, "objective": "lsr", "step": 10, "loss": 0.71, "learning_rate": 1e-4}
    {"stage": 1, "objective": "lsr", "step": 10, "eval_loss": 0.69, "eval_recall@5": 0.8}

>>> from fedrag.evaluation import Record, summarize
>>> from fedrag.types import Example
>>> recall([Record(Example("Who?", positives=["d1", "d2"]), {"recall@3": 0.5}, hits=("d7", "d2", "d3"))])
((1, 0.0), (2, 0.5), (3, 0.5))
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from fedrag.errors import DataError
from fedrag.evaluation import Record, Report
from fedrag.federated.history import History, Round
from fedrag.pages.charts import LineChart, Series

_POINTS = 200  # of a line: more than a screen can tell apart
_LINES = 12  # of a chart
_ASIDE = ("epoch", "step", "stage", "time", "total_flos", "num_input_tokens_seen")
_ASIDE_ENDS = ("_runtime", "_per_second", "_compilation_time")
_LIMIT = 1e300  # beyond it, differences overflow


def recall(records: Sequence[Record]) -> tuple[tuple[int, float], ...]:
    """Return `(k, mean recall@k)` for every k down to the deepest ranking, over the records with positives.

    At the report's own cut-offs these are the report's figures.
    """
    judged = [record for record in records if record.example.positives]
    depth = max((len(record.hits) for record in judged), default=0)
    found = [0.0] * depth
    for record in judged:
        gold = set(record.example.positives)
        for place, id in enumerate(record.hits):
            if id in gold:
                gold.remove(id)  # an id that comes twice counts once
                found[place] += 1 / len(set(record.example.positives))
    total, curve = 0.0, list[tuple[int, float]]()
    for place, gained in enumerate(found, start=1):
        total += gained
        curve.append((place, total / len(judged)))
    return tuple(curve)


def recalls(reports: Mapping[str, Report], styles: Mapping[str, str]) -> LineChart | None:
    """The chart of every report's recall; `None` where no example names positives, or nothing was retrieved."""
    found = {name: points for name, report in reports.items() if (points := recall(report.records))}
    return line_chart("Recall in the first k passages", "k", found, styles=styles) if found else None


def read_log(path: Path) -> list[Mapping[str, Any]]:
    """Read the entries of a log. Raises `DataError`, which names the file and the line, for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            lines = [(f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
            rows = [(place, json.loads(line)) for place, line in lines]
        else:
            content: Any = json.loads(text)
            rows = [(f"{path}, entry {n}", row) for n, row in enumerate(content["log_history"], start=1)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is no training log ({type(error).__name__}: {error}); pass a trainer_state.json, or a .jsonl file "
            "whose rows are JSON objects with a step"
        ) from None
    for place, row in rows:
        step = cast("dict[str, Any]", row).get("step") if isinstance(row, dict) else None
        if not _number(step):
            raise DataError(f"{place} is no log entry: wanted a JSON object with a number as its step")
    # a checkpoint's folder is in that of its stage
    stage = {"stage": path.absolute().parent.parent.name} if path.parent.name.startswith("checkpoint-") else {}
    return [{**stage, **row} for _, row in rows]


def learning(rows: Iterable[Mapping[str, Any]], metric: str = "") -> list[LineChart]:
    """One chart for each number that was logged at two steps or more, one line for each stage.

    The losses come first, then the metric named, then all that was measured.

    A row without a stage belongs to the one before it, unless its step goes back: then a new stage has begun.
    """
    found: dict[str, dict[str, dict[float, float]]] = {}
    stage, last, count = "stage 1", -math.inf, 1
    dropped: dict[str, int] = {}
    for row in rows:
        if "stage" in row:
            stage = " ".join(str(row[name]) for name in ("stage", "objective") if name in row)
        elif row["step"] < last:
            count += 1
            stage = f"stage {count}"
        last = row["step"]
        for name, value in row.items():
            if name in _ASIDE or name.endswith(_ASIDE_ENDS) or not isinstance(value, int | float):
                continue
            if _number(value):
                found.setdefault(name, {}).setdefault(stage, {})[row["step"]] = float(value)
            else:
                dropped[name] = dropped.get(name, 0) + 1
    first = ("loss", "eval_loss", metric)
    order = sorted(found, key=lambda name: (*(name != one for one in first), not name.startswith("eval_")))
    return [
        line_chart(
            name,
            "step",
            {stage: sorted(points.items()) for stage, points in found[name].items()},
            f"{dropped[name]} values that are not finite are not drawn." if name in dropped else "",
        )
        for name in order
        if max(map(len, found[name].values())) > 1
    ]


def read_history(path: Path) -> History:
    """Read `History.to_json`, or the `run.json` of a federated run's folder. Raises `DataError` for anything else."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("history", content)
        return TypeAdapter(History).validate_python({"rounds": found["rounds"], "closing": found["closing"]})
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise DataError(
        f"{path} is no federated history ({reason}); pass the JSON of History.to_json(), or the run.json of a "
        "federated run"
    )


def rounds(history: History) -> list[LineChart]:
    """The charts of a federation: each number over all sites, then site by site, then the bytes.

    Across is the number of rounds behind the state that was measured: a site measures (`eval_`) what comes to it and
    tells the loss of what it then trains, so the first round has its measure at 0 and its loss at 1.
    """
    rows = [*history.rounds, *([history.closing] if history.closing else [])]
    whole: dict[str, list[tuple[float, float]]] = {}
    sites: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for name, value in row.metrics.items():
            if _number(value):
                whole.setdefault(name, []).append((_behind(row, name), value))
        for site, reply in row.sites.items():
            for name, value in reply.metrics.items():
                if _number(value) and name != "num-examples":
                    sites.setdefault(name, {}).setdefault(site, []).append((_behind(row, name), value))
    charts = [line_chart(name, "rounds", {"all sites": points}) for name, points in whole.items() if len(points) > 1]
    charts += [line_chart(f"{name}, by site", "rounds", lines) for name, lines in sites.items() if len(lines) > 1]
    if history.rounds:
        unit, size = _unit(max(max(row.bytes_down, row.bytes_up) for row in history.rounds))
        down = [(row.number + 1.0, row.bytes_down / size) for row in history.rounds]
        up = [(row.number + 1.0, row.bytes_up / size) for row in history.rounds]
        charts.append(
            line_chart(f"{unit} that travelled in each round", "rounds", {"to the sites": down, "from the sites": up})
        )
    return charts


def line_chart(
    title: str,
    across: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    note: str = "",
    styles: Mapping[str, str] | None = None,
) -> LineChart:
    """Make a chart of no more lines and points than can be told apart, and note what was left out."""
    notes = [note] if note else []
    if len(lines) > _LINES:
        notes.append(f"The first {_LINES} of {len(lines)} lines are drawn.")
    series: list[Series] = []
    for name, points in list(lines.items())[:_LINES]:
        every = -(-len(points) // _POINTS)
        if every > 1:
            notes.append(f"{name}: one point of {every} is drawn, and the last.")
            points = [*points[: len(points) - 1 : every], points[-1]]
        series.append(Series(name, tuple(points), (styles or {}).get(name, "")))
    return LineChart(title, across, tuple(series), " ".join(notes))


def _behind(row: Round, name: str) -> float:
    return float(row.number if name.startswith("eval_") else row.number + 1)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LIMIT


def _unit(most: int) -> tuple[str, int]:
    for unit, size in (("Gigabytes", 10**9), ("Megabytes", 10**6), ("Kilobytes", 10**3)):
        if most >= size:
            return unit, size
    return "Bytes", 1
