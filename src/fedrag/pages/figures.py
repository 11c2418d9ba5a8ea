"""What the page's tables and dots show, taken from the reports as they are: nothing is computed a second way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedrag.errors import ConfigError, InputError
from fedrag.evaluation import Comparison, Difference, Metric, Record, Report, summarize
from fedrag.pages.charts import Dot, style, ticks

_GROUPS = 20  # subgroups that the page shows, the largest first
WAS = "was"  # how the report before is drawn: grey and hollow


@dataclass(frozen=True, slots=True)
class Means:
    """The means of every report: by metric, one cell a report; and the same as dots."""

    rows: tuple[tuple[str, tuple[Metric | None, ...]], ...]
    dots: tuple[tuple[str, tuple[Dot, ...]], ...]
    axis: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """One report against the one before, and the same as dots."""

    comparison: Comparison
    dots: tuple[tuple[str, tuple[Dot, ...]], ...]
    axis: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Subgroup:
    """The examples with one value of a metadata key: the chosen metric's mean, and how it changed."""

    name: str
    metric: Metric
    difference: Difference | None


def styles(reports: Mapping[str, Report]) -> dict[str, str]:
    """The classes of each report's dots and line: the one before is apart, the others take the colours in order."""
    others = [name for name in reports if name != "before"]
    return {name: WAS if name == "before" else style(others.index(name)) for name in reports}


def means(reports: Mapping[str, Report]) -> Means:
    """Put the reports' means side by side; the order of the metrics is that of `after`."""
    names = dict.fromkeys(name for report in [reports["after"], *reports.values()] for name in report.metrics)
    rows = tuple((name, tuple(report.metrics.get(name) for report in reports.values())) for name in names)
    looks = styles(reports).values()
    dots = tuple(
        (name, tuple(Dot(s, m.mean, m.low, m.high) for s, m in zip(looks, cells, strict=True) if m is not None))
        for name, cells in rows
    )
    ends = [end for _, some in dots for dot in some for end in (dot.low, dot.high)]
    return Means(rows, dots, tuple(ticks(min(0.0, *ends), max(1.0, *ends))))


def compared(before: Report, reports: Mapping[str, Report]) -> dict[str, Compared]:
    """Compare every other report with the one before. Raises `InputError`, with its name, for other questions."""
    found: dict[str, Compared] = {}
    for name, report in reports.items():
        if report is before:
            continue
        try:
            comparison = report.compare(before)
        except InputError as error:
            raise InputError(f"report {name!r}: {error}") from None
        rows = comparison.differences
        look = styles(reports)[name]
        dots = tuple((metric, (Dot(look, row.difference, row.low, row.high),)) for metric, row in rows.items())
        most = max([0.05, *(abs(end) for row in rows.values() for end in (row.low, row.high))])
        found[name] = Compared(comparison, dots, tuple(ticks(-most, most, 4)))
    return found


def subgroups(after: Report, before: Report | None, metric: str, by: str | None) -> tuple[list[Subgroup], int]:
    """The chosen metric by the values of a metadata key, and how many values there are; the largest groups come first.

    Raises `ConfigError` where no example has the key.
    """
    key = by or after.cluster
    if key is None:
        return [], 0
    places: dict[str, list[int]] = {}
    for place, record in enumerate(after.records):
        if key in record.example.metadata and metric in record.values:
            value = record.example.metadata[key]
            name = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)
            places.setdefault(name, []).append(place)
    if not places:
        known = dict.fromkeys(name for record in after.records for name in record.example.metadata)
        raise ConfigError(f"no example has {key!r} in its metadata; they have {', '.join(known) or 'no metadata'}")
    found: list[Subgroup] = []
    for name, some in sorted(places.items(), key=lambda item: -len(item[1]))[:_GROUPS]:
        new = _only(after, metric, some)
        old = None if before is None else _only(before, metric, some)
        change = None if old is None or new is None else new.compare(old).differences.get(metric)
        if new is not None:
            found.append(Subgroup(name, new.metrics[metric], change))
    return found, len(places)


def _only(report: Report, metric: str, places: Sequence[int]) -> Report | None:
    """The report on some examples and one metric; not clustered, for the examples may all be of one cluster."""
    records = [report.records[place] for place in places]
    kept = [Record(record.example, {metric: record.values[metric]}) for record in records if metric in record.values]
    whole = len(kept) == len(records)
    return summarize(kept, seed=report.seed) if whole else None
