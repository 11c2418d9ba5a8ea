"""What an evaluation found: means with intervals, and below them every single example.

A `Report` keeps one `Record` per example, so that any mean can be looked behind: `subset` takes a part of the examples,
`compare` pairs two reports on the same questions, `save` and `load` go through a JSON file that other tools can read.

Where some questions have answers and others have none, exact match and F1 are also told apart, as SQuAD 2.0 does
(HasAns, NoAns): a system that never answers is perfect on one part and useless on the other.

A metric that an example does not have is left out of that metric's mean, never counted as 0: recall of a question
without labelled documents, say. `n` says how many examples a mean rests on, and the table says what was left out.

>>> right, wrong = Example("Capital of France?", ["Paris"]), Example("Capital of Chad?", ["N'Djamena"])
>>> before = summarize([Record(right, {"f1": 0.0}, "Lyon"), Record(wrong, {"f1": 0.0}, "Abuja")])
>>> after = summarize([Record(right, {"f1": 1.0}, "Paris"), Record(wrong, {"f1": 0.0}, "Abuja")])
>>> after.metrics["f1"]
Metric(mean=0.5, low=0.0, high=1.0, n=2)
>>> after.compare(before).differences["f1"].p
1.0
>>> [record.answer for record in after.subset(lambda record: record.values["f1"] < 1).records]
['Abuja']
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from fedrag.durable import replace_text
from fedrag.errors import DataError, InputError
from fedrag.evaluation.comparison import Comparison, groups, pair, table
from fedrag.evaluation.statistics import RESAMPLES, Floats, interval
from fedrag.types import Example

_VERSION = 1
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class _Mean:
    """A `Metric` in the file."""

    mean: _Number
    low: _Number
    high: _Number
    n: Annotated[int, Field(strict=True)]


@dataclass(frozen=True, slots=True)
class _Row:
    """A `Record` in the file."""

    question: str
    answer: str | None
    answers: tuple[str, ...] | None
    hits: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    metadata: dict[str, Any]
    values: dict[str, _Number]


@dataclass(frozen=True, slots=True)
class _Saved:
    """The file, beside its format and version."""

    metrics: dict[str, _Mean]
    records: Annotated[list[_Row], Field(min_length=1)]
    cluster: str | None
    seed: Annotated[int, Field(strict=True)]


@dataclass(frozen=True, slots=True)
class Metric:
    """A mean over `n` examples, and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Record:
    """One example and how it went.

    `values` are the metrics that this example has, each in [0, 1]; `answer` is `None` when none was asked for; `hits`
    are the ids of the documents that the retrieval metrics looked at, best first.
    """

    example: Example
    values: Mapping[str, float]
    answer: str | None = None
    hits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Means with intervals by metric, and the records they come from. `str()` is a table; made by `summarize`.

    `cluster` is the metadata key whose equal values were resampled together, if any; `seed` that of the resampling.
    """

    metrics: Mapping[str, Metric]
    records: tuple[Record, ...] = field(repr=False)
    cluster: str | None = None
    seed: int = 0

    def subset(self, keep: Callable[[Record], bool]) -> Report:
        """Return the report on the examples for which `keep` is true. Raises `InputError` when there are none."""
        kept = [record for record in self.records if keep(record)]
        if not kept:
            raise InputError(f"none of the {len(self.records)} records is in the subset; widen its condition")
        return summarize(kept, cluster=self.cluster, seed=self.seed)

    def compare(self, before: Report) -> Comparison:
        """Pair this report with an earlier one on the same examples, in the same order; differences are this - before.

        Raises `InputError` when the examples differ, and names the first that does.
        """
        if len(self.records) != len(before.records):
            raise InputError(
                f"this report has {len(self.records)} examples and the one before {len(before.records)}; "
                "evaluate both on the same examples, or take the same subset of both"
            )
        for place, (new, old) in enumerate(zip(self.records, before.records, strict=True)):
            if (new.example.question, new.example.answers) != (old.example.question, old.example.answers):
                raise InputError(
                    f"example {place} has another question, or other gold answers, than in the report before; "
                    "evaluate both on the same examples in the same order"
                )
        if self.cluster != before.cluster:
            raise InputError(
                f"this report has cluster={self.cluster!r} and the one before cluster={before.cluster!r}; "
                "evaluate both with the same, or call summarize(report.records, cluster=...)"
            )
        clusters = clusters_of([record.example for record in self.records], self.cluster)
        return pair(_columns(before.records), _columns(self.records), clusters, self.seed)

    def __str__(self) -> str:
        rows = [
            (name, f"{metric.mean:.3f}", f"[{metric.low:.3f}, {metric.high:.3f}]", str(metric.n))
            for name, metric in self.metrics.items()
        ]
        unlabelled = sum(not record.example.positives for record in self.records)
        labels = any(name.startswith("recall@") for name in self.metrics)
        notes = [f"{len(self.records)} questions; intervals from {RESAMPLES:,} resamples"]
        if self.cluster is not None:
            many = len(set(clusters_of([record.example for record in self.records], self.cluster) or ()))
            notes[0] += f" of the {many} values of {self.cluster!r}"
        if unlabelled and labels:
            notes.append(f"{unlabelled} without labelled documents are left out of recall, hit, mrr, ndcg and map")
        return "\n".join([table([("metric", "mean", "95 % interval", "n"), *rows]), *notes])

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all.

        Raises `InputError` for metadata that JSON cannot hold, and for a path that cannot be written.
        """
        content = {
            "format": "fedrag evaluation report",
            "version": _VERSION,
            "seed": self.seed,
            "cluster": self.cluster,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "records": [_plain(record) for record in self.records],
        }
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the report cannot be written as JSON: {error}; keep plain values in Example.metadata"
            ) from None
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, text + "\n")
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); give the path of a file, new or to replace"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what `save` wrote. Raises `DataError`, which names the file, for anything else."""
        try:
            content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            version = content["version"] if content["format"] == "fedrag evaluation report" else None
            if version != _VERSION:
                raise DataError(f"{path} has report version {version!r}, this fedrag reads {_VERSION}; evaluate again")
            saved = TypeAdapter(_Saved).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            reason: object = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = error
        else:
            metrics = {name: Metric(mean.mean, mean.low, mean.high, mean.n) for name, mean in saved.metrics.items()}
            return cls(metrics, tuple(map(_record, saved.records)), saved.cluster, saved.seed)
        raise DataError(f"{path} is not a report that fedrag saved ({reason}); evaluate again and save it")


def summarize(records: Sequence[Record], *, cluster: str | None = None, seed: int = 0) -> Report:
    """Average the records' values by metric, with intervals.

    Args:
        records: at least one.
        cluster: a metadata key; examples with equal values there are resampled together.
        seed: of the resampling; a metric's interval does not depend on which other metrics there are.

    Raises `InputError` when there are no records, no values, or an example lacks the cluster key.
    """
    if not records:
        raise InputError("there is nothing to evaluate: got no examples, wanted at least one")
    columns = _columns(records)
    clusters = clusters_of([record.example for record in records], cluster)
    found: dict[str, Metric] = {}
    for names, keep in groups(columns).items():
        values = np.stack([columns[name][keep] for name in names], axis=1)  # [n, m]
        kept = None if clusters is None else [clusters[row] for row in np.flatnonzero(keep).tolist()]
        low, high = interval(values, clusters=kept, seed=seed)
        for name, mean, *ends in zip(names, values.mean(axis=0), low, high, strict=True):
            found[name] = Metric(float(mean), *map(float, ends), n=len(values))
    if not found:
        raise InputError("no example has anything to measure: give Example.answers or Example.positives")
    return Report({name: found[name] for name in columns}, tuple(records), cluster, seed)


def clusters_of(examples: Sequence[Example], key: str | None) -> list[Hashable] | None:
    """Return the cluster of each example by its metadata; `None` without a key. Raises `InputError` where it lacks."""
    if key is None:
        return None
    for place, example in enumerate(examples):
        if key not in example.metadata:
            raise InputError(f"cluster={key!r}, but example {place} has no such metadata")
    return [json.dumps(example.metadata[key], sort_keys=True, default=repr) for example in examples]


def _columns(records: Sequence[Record]) -> dict[str, Floats]:
    """Return the values `[n]` by metric, NaN where a record has none, and the split by answerability."""
    fullest = max(records, key=lambda record: len(record.values))  # its order of the metrics is everyone's
    names = dict.fromkeys(name for record in (fullest, *records) for name in record.values)
    columns = {name: np.array([record.values.get(name, np.nan) for record in records]) for name in names}
    answerable = np.array([bool(record.example.answers) for record in records])
    unanswerable = np.array([record.example.answers == () for record in records])
    if answerable.any() and unanswerable.any():
        for name in [name for name in ("exact_match", "f1") if name in columns]:
            columns[f"{name}_answerable"] = np.where(answerable, columns[name], np.nan)
        if "exact_match" in columns:  # where the empty answer is gold, F1 is the exact match
            columns["exact_match_unanswerable"] = np.where(unanswerable, columns["exact_match"], np.nan)
    return columns


def _plain(record: Record) -> dict[str, Any]:
    example = record.example
    return {
        "question": example.question,
        "answer": record.answer,
        "answers": example.answers,
        "hits": record.hits,
        "positives": example.positives,
        "negatives": example.negatives,
        "metadata": dict(example.metadata),
        "values": dict(record.values),
    }


def _record(row: _Row) -> Record:
    example = Example(row.question, row.answers, row.positives, row.negatives, row.metadata)
    return Record(example, row.values, row.answer, row.hits)
