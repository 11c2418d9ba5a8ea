"""Two stages: a retriever finds many documents cheaply, a reranker reads each with the question and keeps the best.

rag = RAGSystem(
    retriever=Reranked(dense, CrossEncoderReranker("cross-encoder/ms-marco-MiniLM-L6-v2"), depth=50), ...
)
RAGTrainer(Ranking(rag), train_dataset=train).train()
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedrag.errors import ConfigError, InputError
from fedrag.ops.modes import evaluating
from fedrag.types import Document, Hit, Retriever, Where


@runtime_checkable
class Reranker(Protocol):
    """Anything that scores documents for a question: `CrossEncoderReranker`, or ten lines of your own."""

    def scores(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> Tensor:
        """Score each query's own candidates: `[n, k]`, `-inf` where a query has fewer than k; higher is better.

        Trained where it is an `nn.Module`, differentiable in the current grad mode.
        """
        ...


class Reranked:
    """The best of what a retriever finds, by a reranker's scores; equal scores stay in the retriever's order.

    Args:
        retriever: the first stage.
        reranker: the second one.
        depth: documents of the first stage that are scored, or k where that is more. What the first stage does not
            find among them, no reranker brings back.

    Raises:
        ConfigError: for a depth below 1, or a reranker without `scores`.
    """

    def __init__(self, retriever: Retriever, reranker: Reranker, *, depth: int = 50) -> None:
        if depth < 1:
            raise ConfigError(f"depth={depth}: the reranker must get at least 1 document")
        if not callable(getattr(reranker, "scores", None)):
            raise ConfigError(
                f"a reranker has scores(queries, documents), a {type(reranker).__name__} has none: wrap a model or its "
                "name in CrossEncoderReranker"
            )
        self.retriever = retriever
        self.reranker = reranker
        self.depth = depth

    @property
    def inside(self) -> tuple[Retriever, ...]:
        """The first stage."""
        return (self.retriever,)

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return up to k hits per query, best first, each with the reranker's score.

        Raises:
            InputError: for k below 1, and for scores that are not one number for each document.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        found = [[hit.document for hit in hits] for hits in self.retriever.retrieve(queries, max(k, self.depth), where)]
        full = [n for n, row in enumerate(found) if row]
        if not full:
            return [[] for _ in queries]
        quiet = evaluating(self.reranker) if isinstance(self.reranker, nn.Module) else nullcontext()
        with quiet, torch.no_grad():
            scores = self.reranker.scores([queries[n] for n in full], [found[n] for n in full]).cpu()  # [n, k]
        if scores.shape != (len(full), max(map(len, found))) or bool(scores.isnan().any()):
            what = "NaN" if bool(scores.isnan().any()) else f"scores of the shape {list(scores.shape)}"
            raise InputError(
                f"the {type(self.reranker).__name__} gave {what} for {len(full)} queries with up to "
                f"{max(map(len, found))} documents: it must give one number for each, [n, k]"
            )
        hits: list[list[Hit]] = [[] for _ in queries]
        for n, row in zip(full, scores.tolist(), strict=True):
            scored = [Hit(document, score) for document, score in zip(found[n], row, strict=False)]
            hits[n] = sorted(scored, key=lambda hit: -hit.score)[:k]
        return hits
