"""The difference between two reports on the same questions, metric by metric.

The questions are paired: what counts is how each question's value changed, which is far more telling than whether the
two intervals overlap. A row has the means before and after, their difference, its 95 % bootstrap interval, the p-value
of the paired permutation test, the same adjusted for the number of metrics compared (Holm), and how many questions it
rests on. See `fedrag.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedrag.evaluation.statistics import Floats, holm, interval, sign_flip


@dataclass(frozen=True, slots=True)
class Difference:
    """How one metric changed, after minus before, over the `n` questions that have it in both reports."""

    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired differences by metric. `str()` is a table.

    `left_out` names the metrics that only one of the reports has, or that no question has in both.
    """

    differences: Mapping[str, Difference]
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ("metric", "before", "after", "difference", "95 % interval", "p", "p (Holm)", "n")
        rows = [
            (
                name,
                f"{row.before:.3f}",
                f"{row.after:.3f}",
                f"{row.difference:+.3f}",
                f"[{row.low:+.3f}, {row.high:+.3f}]",
                _p(row.p),
                _p(row.p_holm),
                str(row.n),
            )
            for name, row in self.differences.items()
        ]
        notes = [f"not in both: {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join([table([head, *rows]), *notes])


def pair(
    before: Mapping[str, Floats], after: Mapping[str, Floats], clusters: Sequence[Hashable] | None, seed: int
) -> Comparison:
    """Compare columns `[n]` of values, NaN where a question lacks the metric, whose rows are the same questions."""
    rows: dict[str, Difference] = {}
    for names, keep in groups({name: before[name] + after[name] for name in after if name in before}).items():
        one, two = (np.stack([columns[name][keep] for name in names], axis=1) for columns in (before, after))  # [n, m]
        kept = None if clusters is None else [clusters[row] for row in np.flatnonzero(keep).tolist()]
        low, high = interval(two - one, clusters=kept, bounds=(-1.0, 1.0), seed=seed)
        p = sign_flip(two - one, clusters=kept, seed=seed)
        for column, name in enumerate(names):
            means = float(one[:, column].mean()), float(two[:, column].mean())
            ends = float(low[column]), float(high[column])
            change = float((two - one)[:, column].mean())
            rows[name] = Difference(*means, change, *ends, p=float(p[column]), p_holm=float(p[column]), n=len(one))
    ordered = [name for name in after if name in rows]
    adjusted = zip(ordered, holm([rows[name].p for name in ordered]), strict=True)
    left_out = tuple(name for name in {**before, **after} if name not in rows)
    return Comparison({name: replace(rows[name], p_holm=p) for name, p in adjusted}, left_out)


def groups(columns: Mapping[str, Floats]) -> dict[tuple[str, ...], np.ndarray]:
    """Put together the columns that have values (not NaN) in the same rows; return the mask `[n]` of those rows.

    Columns without any value are left out. What is grouped is resampled at once.
    """
    found: dict[bytes, list[str]] = {}
    for name, column in columns.items():
        found.setdefault((~np.isnan(column)).tobytes(), []).append(name)
    masks = {tuple(names): np.frombuffer(mask, dtype=np.bool_) for mask, names in found.items()}
    return {names: mask for names, mask in masks.items() if mask.any()}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
