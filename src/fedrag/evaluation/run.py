"""Asking a RAG system, or a retriever alone, a set of questions and measuring what comes back.

>>> from fedrag.types import Answer, Document, Example, Hit
>>> class Oracle:
...     def query_batch(self, questions, *, k=None, batch_size=32, progress=False):
...         return [Answer("Paris", (Hit(Document("Paris is the capital of France.", "d1"), 1.0),)) for _ in questions]
>>> report = evaluate(Oracle(), [Example("What is the capital of France?", ["Paris"], positives=["d1"])])
>>> report.metrics["exact_match"].mean, report.metrics["recall@1"].mean, report.metrics["exact_match"].n
(1.0, 1.0, 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fedrag.errors import InputError
from fedrag.evaluation.ranking import answer_recall, label_metrics
from fedrag.evaluation.report import Record, Report, clusters_of, summarize
from fedrag.evaluation.text import answer_metrics, support
from fedrag.progress import track
from fedrag.types import Answer, Example, Hit, Retriever


class Answerer(Protocol):
    """What `evaluate` asks: a `RAGSystem`, or anything else that answers a batch of questions with its sources."""

    def query_batch(
        self, questions: Sequence[str], *, k: int | None = None, batch_size: int = 32, progress: bool = False
    ) -> list[Answer]:
        """Return one answer per question, in order; `k` is the number of documents shown to the generator."""
        ...


@runtime_checkable
class HasRetriever(Protocol):
    """A system whose retriever can be asked by itself."""

    @property
    def retriever(self) -> Retriever:
        """The retriever."""
        ...


def evaluate(
    rag: Answerer,
    examples: Sequence[Example],
    *,
    k: int | None = None,
    depth: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
    seed: int = 0,
    cluster: str | None = None,
) -> Report:
    """Ask every example's question and report answer metrics and retrieval metrics, with intervals.

    The metrics: `exact_match`, `f1`, `rouge_l` (package rouge_score), `contains`, `support` (see
    `fedrag.evaluation.text`); `answer_recall@k`, and where examples name positives `recall@k`, `hit@k`, `mrr@k`,
    `ndcg@k`, `map@k` (see `fedrag.evaluation.ranking`). With no document shown (k=0) the answer metrics remain.

    Args:
        k: number of documents shown to the generator; `None` is the system's own setting.
        depth: rank down to which the retrieval metrics look. By default they judge the documents retrieved for the
            prompt, also where its budget shortened them; `support` looks only at what was read. A larger
            depth asks `rag.retriever` once more, and the generator still sees only k.
        batch_size: questions asked at a time.
        progress: whether to show progress bars.
        seed: of the bootstrap.
        cluster: a metadata key of the examples, such as the source document; equal values are resampled together.

    Raises `InputError` when there are no examples, one lacks the cluster key, or `depth` is given for a system without
    a `retriever`.
    """
    _check(examples, batch_size, cluster)
    retriever = None
    if depth is not None:
        if depth < 1:
            raise InputError(f"depth is the number of documents to rank, at least 1, got {depth}")
        if not isinstance(rag, HasRetriever):
            raise InputError(
                f"depth={depth} asks for deeper retrieval, but {type(rag).__name__} has no retriever; leave depth out"
            )
        retriever = rag.retriever
    questions = [example.question for example in examples]
    answers = rag.query_batch(questions, k=k, batch_size=batch_size, progress=progress)
    if len(answers) != len(examples):
        raise InputError(
            f"query_batch returned {len(answers)} answers to {len(examples)} questions; it must return one each"
        )
    ranked = shown = [answer.hits for answer in answers]
    seen = judged = max(map(len, shown)) if k is None else k
    if retriever is not None and depth is not None:
        ranked, judged = _retrieve(retriever, questions, depth, batch_size, progress), depth
    values: list[dict[str, float]] = [
        {} if example.answers is None else answer_metrics(answer.text, example.answers)
        for answer, example in zip(answers, examples, strict=True)
    ]
    if seen > 0:
        for row, answer in zip(values, answers, strict=True):
            texts = [hit.document.text for hit in answer.hits] if answer.read is None else answer.read
            held = support(answer.text, texts)
            if held is not None:
                row["support"] = held
    if judged > 0:
        for row, more in zip(values, _ranking(ranked, examples, judged), strict=True):
            row.update(more)
    texts = [answer.text for answer in answers]
    return summarize(_records(examples, values, texts, ranked), cluster=cluster, seed=seed)


def evaluate_retriever(
    retriever: Retriever,
    examples: Sequence[Example],
    *,
    k: int = 10,
    batch_size: int = 256,
    progress: bool = True,
    seed: int = 0,
    cluster: str | None = None,
) -> Report:
    """Retrieve k documents for every example's question and report the retrieval metrics of `evaluate`, with intervals.

    Needs no generator. Examples need `positives` (ids of documents) for the metrics with labels, or `answers` for
    `answer_recall@k`. Raises `InputError` when there are no examples, or none has either.
    """
    _check(examples, batch_size, cluster)
    if k < 1:
        raise InputError(f"k is the number of documents to retrieve, at least 1, got {k}")
    ranked = _retrieve(retriever, [example.question for example in examples], k, batch_size, progress)
    records = _records(examples, _ranking(ranked, examples, k), [None] * len(examples), ranked)
    return summarize(records, cluster=cluster, seed=seed)


def _check(examples: Sequence[Example], batch_size: int, cluster: str | None) -> None:
    """Find before any answer is generated what would fail after it."""
    if not examples:
        raise InputError("there is nothing to evaluate: got no examples, wanted at least one")
    if batch_size < 1:
        raise InputError(f"batch_size is the number of questions asked at a time, at least 1, got {batch_size}")
    clusters_of(examples, cluster)


def _retrieve(
    retriever: Retriever, questions: Sequence[str], k: int, batch_size: int, progress: bool
) -> list[tuple[Hit, ...]]:
    ranked: list[tuple[Hit, ...]] = []
    with track(total=len(questions), desc="retrieving", unit="question", disable=not progress) as bar:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            found = retriever.retrieve(batch, k)
            if len(found) != len(batch):
                raise InputError(
                    f"retrieve returned {len(found)} rankings for {len(batch)} queries; it must return one each"
                )
            ranked += [tuple(hits) for hits in found]
            bar.update(len(batch))
    return ranked


def _ranking(ranked: Sequence[Sequence[Hit]], examples: Sequence[Example], depth: int) -> list[dict[str, float]]:
    ids = [[hit.document.id for hit in hits] for hits in ranked]
    texts = [[hit.document.text for hit in hits] for hits in ranked]
    labelled = label_metrics(ids, [example.positives for example in examples], depth)
    answered = answer_recall(texts, [example.answers or () for example in examples], depth)
    return [a | b for a, b in zip(labelled, answered, strict=True)]


def _records(
    examples: Sequence[Example],
    values: Sequence[dict[str, float]],
    answers: Sequence[str | None],
    ranked: Sequence[Sequence[Hit]],
) -> list[Record]:
    return [
        Record(example, row, answer, tuple(hit.document.id for hit in hits))
        for example, row, answer, hits in zip(examples, values, answers, ranked, strict=True)
    ]
