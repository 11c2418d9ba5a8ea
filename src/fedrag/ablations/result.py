"""What an ablation found: pooled means with intervals, means by seed, costs, and paired comparisons.

The questions of all seeds are pooled and those of one cluster resampled together. Seeds often differ more than such an
interval says, which is over questions; so the means are told by seed, too, and each difference.

>>> from fedrag.ablations import ablation
>>> from fedrag.rag import RAGSystem
>>> from fedrag.retrievers.lexical import LexicalRetriever
>>> from fedrag.types import Document, Example
>>> class Parrot:
...     word = "Rome"
...
...     def generate(self, prompts, **_):
...         return [self.word] * len(prompts)
>>> def make(seed):
...     retriever = LexicalRetriever([Document("Paris is the capital of France.")])
...     return RAGSystem(retriever=retriever, generator=Parrot(), top_k=1)
>>> def teach(rag, seed):
...     rag.generator.word = "Paris"
>>> test = [Example("The capital of France?", ["Paris"]), Example("The capital of Chad?", ["N'Djamena"])]
>>> grid = ablation(make, {"frozen": lambda rag, seed: None, "taught": teach}, test, seeds=(0, 1), progress=False)
>>> grid.report("taught", "end to end").metrics["exact_match"].mean
0.5
>>> [(row.after, row.difference.difference, row.by_seed) for row in grid.compare()]
[('taught', 0.5, (0.5, 0.5))]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fedrag.ablations.cell import CLUSTER, Cell, Cost
from fedrag.errors import ConfigError
from fedrag.evaluation import Difference, Record, Report, summarize
from fedrag.evaluation.comparison import pair, table
from fedrag.evaluation.report import clusters_of
from fedrag.evaluation.statistics import Floats, holm

Column = tuple[str, str]
"""A setting and a metric."""

Rows = list[tuple[str, ...]]

_TRAINED = 0.1  # CPU seconds: what takes less was not trained, and a gain per minute would say nothing


@dataclass(frozen=True, slots=True)
class Contrast:
    """One paired comparison, `after` minus `before`, over all seeds' questions; and the difference seed by seed."""

    after: str
    before: str
    setting: str
    metric: str
    difference: Difference
    by_seed: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Ablation:
    """The cells of a grid, by regime and seed. `str()` is its tables; made by `ablation`.

    Attributes:
        columns: what is shown: by heading, a setting and a metric. Gains, costs and the means by seed are told for the
            first. As made, the first metric of every setting; `replace(grid, columns=...)` shows others.
        compared: the headings of those columns in which differences are tested; none named is all.
    """

    cells: Mapping[str, Mapping[int, Cell]] = field(repr=False)
    baseline: str
    columns: Mapping[str, Column] = field(default_factory=dict[str, Column])
    compared: Sequence[str] = ()
    _reports: dict[Column, Report] = field(default_factory=dict[Column, Report], init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", self._first_metrics())

    def report(self, regime: str, setting: str) -> Report:
        """Return the report on the questions of all seeds together, which are known by their hashes."""
        if (regime, setting) not in self._reports:  # resampling takes a while
            rows = [record for records in self._records(regime, setting).values() for record in records]
            self._reports[regime, setting] = summarize(rows, cluster=_cluster(rows))
        return self._reports[regime, setting]

    def means(self, regime: str, setting: str, metric: str) -> dict[int, float]:
        """Return the mean of a metric by seed."""
        return {seed: _mean(_values(rows, metric)) for seed, rows in self._records(regime, setting).items()}

    def compare(self, pairs: Sequence[tuple[str, str]] | None = None) -> list[Contrast]:
        """Compare regimes, each pair (after, before) in each compared column, p-values adjusted by Holm over all.

        `None` compares every other regime with the baseline. A pair is compared in the settings that both have.
        Raises `ConfigError` where the two were asked other questions, or had other seeds.
        """
        if pairs is None:
            others = [regime for regime in self.cells if regime != self.baseline]
            pairs = [(regime, self.baseline) for regime in others if self.baseline in self.cells]
        found = [
            self._contrast(after, before, *column)
            for after, before in pairs
            for column in [self.columns[heading] for heading in self.compared or self.columns]
            if self._has(after, *column) and self._has(before, *column)
        ]
        adjusted = zip(found, holm([row.difference.p for row in found]), strict=True)
        return [replace(row, difference=replace(row.difference, p_holm=p)) for row, p in adjusted]

    def cost(self, regime: str) -> Cost:
        """Return the mean cost over the seeds; of memory, the most."""
        costs = [asdict(cell.cost) for cell in self.cells[regime].values()]
        mean = {name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]}
        return Cost(**mean | {"peak_gib": max(cost["peak_gib"] for cost in costs)})

    def content(self) -> dict[str, Any]:
        """Return every figure of the tables as plain JSON values."""
        return self._content(self.compare())

    def _content(self, contrasts: Sequence[Contrast]) -> dict[str, Any]:
        regimes: dict[str, Any] = {}
        for regime, cells in self.cells.items():
            metrics: dict[str, Any] = {}
            for heading, (setting, metric) in self.columns.items():
                if self._has(regime, setting, metric):
                    found = asdict(self.report(regime, setting).metrics[metric])
                    by_seed = {str(seed): mean for seed, mean in self.means(regime, setting, metric).items()}
                    metrics[heading] = {**found, "by_seed": by_seed}
            regimes[regime] = {"seeds": sorted(cells), "metrics": metrics, "cost": asdict(self.cost(regime))}
        for regime in regimes.values():
            regime["gain"] = self._gain(regime, regimes.get(self.baseline))
        compared = [asdict(row) | {"by_seed": list(row.by_seed)} for row in contrasts]
        columns = {heading: list(column) for heading, column in self.columns.items()}
        return {"baseline": self.baseline, "columns": columns, "regimes": regimes, "compared": compared}

    def tables(self) -> dict[str, Rows]:
        """Return the tables by title: means, means by seed, costs and gains, differences. The head is the first row."""
        contrasts, first = self.compare(), next(iter(self.columns))
        content = self._content(contrasts)
        regimes: Mapping[str, Any] = content["regimes"]
        seeds = sorted({seed for cells in self.cells.values() for seed in cells})
        means: Rows = [("regime", *self.columns)]
        by_seed: Rows = [("regime", *(f"seed {seed}" for seed in seeds))]
        costs: Rows = [("regime", "CPU minutes", "wall minutes", "peak GiB", "gain per CPU minute", "gain per GiB")]
        for regime, row in regimes.items():
            means.append((regime, *(_interval(row["metrics"].get(heading)) for heading in self.columns)))
            found = row["metrics"].get(first, {"by_seed": {}})["by_seed"]
            by_seed.append((regime, *(f"{found[str(s)]:.3f}" if str(s) in found else "" for s in seeds)))
            cost, gain = row["cost"], row["gain"] or {"per_cpu_minute": None, "per_gib": None}
            minutes = (f"{cost[name] / 60:.2f}" for name in ("cpu_seconds", "wall_seconds"))
            gains = ("" if value is None else f"{value:+.3f}" for value in (gain["per_cpu_minute"], gain["per_gib"]))
            costs.append((regime, *minutes, f"{cost['peak_gib']:.2f}", *gains))
        titles = ("means (95 % interval)", f"{first}, by seed", f"cost of training, and what {first} gained for it")
        found = dict(zip(titles, (means, by_seed, costs), strict=True))
        headings = {column: heading for heading, column in self.columns.items()}
        if compared := contrast_rows(contrasts, headings):
            found["differences, paired"] = compared
        return found

    def markdown(self) -> str:
        """Return the tables as Markdown."""
        return "\n".join(f"**{title}**\n\n{markdown_table(rows)}" for title, rows in self.tables().items())

    def __str__(self) -> str:
        return "\n\n".join(f"{title}\n{table(rows)}" for title, rows in self.tables().items())

    def _first_metrics(self) -> dict[str, Column]:
        found: dict[str, Column] = {}
        for cells in self.cells.values():
            for cell in cells.values():
                for setting, rows in cell.records.items():
                    metric = next(name for row in rows for name in row.values)
                    found.setdefault(f"{setting}, {metric}", (setting, metric))
        return found

    def _has(self, regime: str, setting: str, metric: str) -> bool:
        return any(metric in row.values for rows in self._records(regime, setting).values() for row in rows)

    def _records(self, regime: str, setting: str) -> dict[int, Sequence[Record]]:
        cells = sorted(self.cells[regime].items())
        return {seed: cell.records[setting] for seed, cell in cells if setting in cell.records}

    def _contrast(self, after: str, before: str, setting: str, metric: str) -> Contrast:
        new, old = self._records(after, setting), self._records(before, setting)
        asked = [{seed: [row.example.question for row in rows] for seed, rows in side.items()} for side in (new, old)]
        if asked[0] != asked[1]:
            raise ConfigError(
                f"{after!r} (seeds {list(new)}) and {before!r} (seeds {list(old)}) were not asked the same questions "
                f"in the setting {setting!r}; run both with the same seeds and the same questions"
            )
        rows = [row for records in new.values() for row in records]
        clusters = clusters_of([row.example for row in rows], _cluster(rows))
        one, two = (np.concatenate([_values(records, metric) for records in side.values()]) for side in (old, new))
        difference = pair({metric: one}, {metric: two}, clusters, 0).differences[metric]
        by_seed = tuple(_mean(_values(new[seed], metric) - _values(old[seed], metric)) for seed in new)
        return Contrast(after, before, setting, metric, difference, by_seed)

    def _gain(self, regime: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> dict[str, float] | None:
        """What the first column gained over the baseline, and per unit of cost; `None` where nothing was trained."""
        first = next(iter(self.columns))
        trained = baseline is not None and regime is not baseline and regime["cost"]["cpu_seconds"] > _TRAINED
        if baseline is None or not trained or not (first in regime["metrics"] and first in baseline["metrics"]):
            return None
        gain = regime["metrics"][first]["mean"] - baseline["metrics"][first]["mean"]
        minutes, gib = regime["cost"]["cpu_seconds"] / 60, regime["cost"]["peak_gib"]
        return {"gain": gain, "per_cpu_minute": gain / minutes, "per_gib": gain / gib}


def contrast_rows(contrasts: Sequence[Contrast], headings: Mapping[Column, str]) -> Rows:
    """Return comparisons as rows of a table, the head first; nothing when there are none."""
    rows: Rows = [("pair", "what", "before", "after", "difference (95 % interval)", "p (Holm)", "by seed")]
    for row in contrasts:
        d = row.difference
        rows.append(
            (
                f"{row.after} - {row.before}",
                headings.get((row.setting, row.metric), f"{row.setting}, {row.metric}"),
                f"{d.before:.3f}",
                f"{d.after:.3f}",
                f"{d.difference:+.3f} ({d.low:+.3f} to {d.high:+.3f})",
                "<0.001" if d.p_holm < 0.001 else f"{d.p_holm:.3f}",
                " ".join(f"{change:+.3f}" for change in row.by_seed),
            )
        )
    return rows if contrasts else []


def markdown_table(rows: Rows) -> str:
    """Return rows of cells, the head first, as a Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _interval(metric: Mapping[str, float] | None) -> str:
    return "" if metric is None else f"{metric['mean']:.3f} ({metric['low']:.2f} to {metric['high']:.2f})"


def _cluster(rows: Sequence[Record]) -> str | None:
    return CLUSTER if all(CLUSTER in row.example.metadata for row in rows) else None


def _values(rows: Sequence[Record], metric: str) -> Floats:
    return np.array([row.values.get(metric, np.nan) for row in rows], dtype=np.float64)


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
