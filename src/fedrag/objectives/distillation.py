"""Distillation: teach the retriever to rank as a cross-encoder does, which is better at it and far too slow to search.

As in RocketQAv2 (Ren et al. 2021, arXiv 2110.07367), whose listwise distillation makes the two models' distributions
over a question's passages alike; here the cross-encoder is frozen:

    t = softmax(c(q, d) / τ_t)                  c: the cross-encoder's score of question and passage, read together
    P = softmax(s(q, d) / τ_s)
    loss = 1/n Σ KL(t || P)                     (`direction="forward"`; "reverse" is KL(P || t))

No answer is needed, and no label: questions and passages are enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrag.objectives.cross_encoder import Judge, PairScorer
from fedrag.objectives.objective import ExcludeIds
from fedrag.objectives.taught import Direction, Taught
from fedrag.objectives.towers import Learner
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example


class Distillation(Taught):
    """Train the retriever towards the ranking of a cross-encoder.

    Requirements: a `DenseRetriever`; questions alone. The teacher's scores are cached by question and text.

    Args:
        rag: the system. With `train="query"`, a one-tower encoder gets a query tower of its own here.
        teacher: a sentence-transformers `CrossEncoder` with one label, whose logits are the scores, or any object
            whose `predict(list of (question, text))` returns a score for each.
        k: documents retrieved per example.
        train: "query" moves the query tower alone, so that the index stays valid; "both" moves documents too;
            "reranker" moves the reranker of a `Reranked` system, a small one towards a large one, say.
        temperature: τ_s; `None` is `rag.temperature` for a system that retrieves by vectors alone, else what the
            student's scores want: 0.05 for cosines, 1 for inner products and for a reranker.
        teacher_temperature: τ_t.
        direction: of the Kullback-Leibler divergence.
        exclude_ids: documents that must not be candidates of an example.

    Logged: what `LSR` logs: `teacher_entropy`, `student_entropy`, `flat_teachers`.

    Relations: `LSR` is the same with a language model for a teacher, who judges by the answer.
    """

    def __init__(
        self,
        rag: RAGSystem,
        teacher: Judge,
        *,
        k: int = 8,
        train: Learner = "query",
        temperature: float | None = None,
        teacher_temperature: float = 1.0,
        direction: Direction = "forward",
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        super().__init__(
            rag,
            PairScorer(teacher, logits=True),
            k=k,
            train=train,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            direction=direction,
            exclude_ids=exclude_ids,
        )

    @torch.no_grad()
    def opinions(self, batch: Sequence[Example], documents: Sequence[Sequence[Document]]) -> list[Tensor]:
        """The cross-encoder's scores."""
        questions = [example.question for example, row in zip(batch, documents, strict=True) for _ in row]
        texts = [document.text for row in documents for document in row]
        return list(self.scorer.logprobs(questions, texts).split([len(row) for row in documents]))
