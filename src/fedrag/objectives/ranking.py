"""Tuning the reranker on labelled passages: which of what the first stage finds is relevant.

The candidates of a question q are its positives and what competes with them: negatives that are given or mined, then
the best that the first stage finds beside them. With s(q, d) the reranker's score,

    pointwise:  loss = 1/n Σ_q 1/k Σ_d  -log σ(s) for a positive, -log σ(-s) for the others
    listwise:   loss = 1/n Σ_q KL(t || softmax(s))      t: equal on the positives, 0 elsewhere

Pointwise is how monoBERT is trained (Nogueira and Cho 2019, arXiv 1901.04085), so that σ(s) is a probability of being
relevant; listwise is ListNet's loss (Cao et al. 2007, ICML), which asks for the order alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedrag.errors import ConfigError, DataError
from fedrag.objectives.objective import ExcludeIds, Objective, one_of
from fedrag.objectives.towers import trained_reranker
from fedrag.ops.ranking import listwise, pointwise
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example

_LOSSES = {"pointwise": pointwise, "listwise": listwise}


class Ranking(Objective):
    """Train the reranker to score an example's positives above the other candidates.

    Requirements: a `Reranked` retriever with a `CrossEncoderReranker` over a `DenseRetriever`, alone or in a hybrid;
    examples with at least one positive. Positives and negatives come from the store.

    Inputs per example: the question and k documents: its positives, its own negatives (`mine` fills them), and the
    best of what the first stage finds beside those. Passages that are relevant without a label are taught to be
    irrelevant: where there are many, mine with guards and take `negatives="given"`.

    Args:
        rag: the system.
        loss: "listwise" or "pointwise".
        k: documents per question.
        negatives: "retrieved" fills each list up to k from the first stage, "given" takes those of the examples alone.
        exclude_ids: documents that must not be retrieved for an example.

    Logged: `first_accuracy`, the share of questions whose best candidate is a positive.

    Relations: `LSR` and `Distillation` with `train="reranker"` teach it without labels. Listwise is `Contrastive`'s
    divergence, with scores of pairs read together.
    """

    def __init__(
        self,
        rag: RAGSystem,
        *,
        loss: Literal["pointwise", "listwise"] = "listwise",
        k: int = 8,
        negatives: Literal["retrieved", "given"] = "retrieved",
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        one_of("loss", loss, tuple(_LOSSES))
        one_of("negatives", negatives, ("retrieved", "given"))
        if k < 2:
            raise ConfigError(f"Ranking compares documents, so k must be at least 2, got {k}")
        super().__init__(rag, parts=[trained_reranker(rag, "Ranking")], depth=k, exclude_ids=exclude_ids)
        self.formula = _LOSSES[loss]
        self.fill = negatives == "retrieved"

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, and how often a positive comes first."""
        documents = self.candidates(batch)
        scores = self.rag.reranker.scores([example.question for example in batch], documents)  # [n, k]
        relevant = torch.zeros_like(scores, dtype=torch.bool)
        for n, (example, row) in enumerate(zip(batch, documents, strict=True)):
            relevant[n, : len(row)] = torch.tensor([document.id in example.positives for document in row])
        best = scores.detach().masked_fill(~relevant, -torch.inf).amax(-1)
        rival = scores.detach().masked_fill(relevant, -torch.inf).amax(-1)
        return {"loss": self.formula(relevant, scores).mean(), "first_accuracy": float((best > rival).float().mean())}

    def find(self, examples: Sequence[Example]) -> list[list[Document]]:
        """The positives of each example, its own negatives, and what the first stage finds beside them, k in all."""
        self.check(examples)
        known = [
            list(dict.fromkeys((*example.positives[: self.depth - 1], *example.negatives))) for example in examples
        ]
        spare = max(len(example.positives) + len(example.negatives) for example in examples)
        found = self.retrieve(examples, self.depth + spare) if self.fill else [[] for _ in examples]
        store = self.rag.dense.store
        return [
            [*store.get(ids), *(d for d in row if d.id not in {*ids, *example.positives})][: self.depth]
            for example, ids, row in zip(examples, known, found, strict=True)
        ]

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` for examples without a positive, or without a negative where those are all there is."""
        if bare := sum(not example.positives for example in examples):
            raise DataError(
                f"Ranking needs a positive document for every question, {bare} of these {len(examples)} examples have "
                "none: put document ids into Example.positives, or teach the reranker by LSR or Distillation"
            )
        if not self.fill and (bare := sum(not example.negatives for example in examples)):
            raise DataError(
                f"Ranking(negatives='given') needs a negative for every question, {bare} of these {len(examples)} "
                "examples have none: fill them by mine(rag, examples, HardNegatives(...))"
            )
