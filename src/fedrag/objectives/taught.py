"""A retriever or a reranker that learns a teacher's opinion of candidates: the body of `LSR` and of `Distillation`.

For the k documents retrieved for a question, with scores o(q, d) of a frozen teacher,

    t = softmax(o(q, d) / τ_t)                  how the teacher shares out its preference
    P = softmax(s(q, d) / τ_s)                  how the student ranks them
    loss = 1/n Σ KL(t || P)                     (`direction="forward"`; "reverse" is KL(P || t))

so that the gradient with respect to s(q, d) / τ_s is (P - t) / n.

Examples whose teacher is flat add nothing to the sum and count in n, so that the loss of a batch is the mean of the
losses of its parts: gradient accumulation, several ranks and evaluation in batches change nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedrag.errors import ConfigError
from fedrag.generators.score_cache import CachedScorer, FingerprintedScorer
from fedrag.objectives.objective import ExcludeIds, Objective, one_of
from fedrag.objectives.towers import Learner, student
from fedrag.ops.divergence import forward_kl, reverse_kl
from fedrag.ops.targets import entropy, likelihood
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example

Direction = Literal["forward", "reverse"]
Target = Callable[[Tensor, float], Tensor]

_FLAT = 1e-3  # nats: a smaller spread of the teacher's scores says nothing about the documents


class Taught(Objective, ABC):
    """Train the retriever, or the reranker, towards a teacher's scores; a subclass says what they are.

    Args:
        rag: the system.
        scorer: the teacher, behind a cache.
        k: documents retrieved per example.
        train: "query" moves the query tower alone, "both" moves documents too, "reranker" moves the reranker.
        temperature: τ_s; `None` is `rag.temperature` for a system that retrieves by vectors alone, else what the
            student's scores want: 0.05 for cosines, 1 for inner products and for a reranker.
        teacher_temperature: τ_t.
        direction: of the Kullback-Leibler divergence.
        exclude_ids: documents that must not be candidates of an example.
        target: makes the target distribution of the teacher's scores `[n, k]` and τ_t.
    """

    def __init__(
        self,
        rag: RAGSystem,
        scorer: FingerprintedScorer,
        *,
        k: int,
        train: Learner,
        temperature: float | None,
        teacher_temperature: float,
        direction: Direction,
        exclude_ids: ExcludeIds | None,
        target: Target = likelihood,
    ) -> None:
        name = type(self).__name__
        if k < 2:
            raise ConfigError(f"{name} compares documents, so k must be at least 2, got {k}")
        one_of("direction", direction, ("forward", "reverse"))
        for setting, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
            if value is not None and value <= 0:
                raise ConfigError(f"{setting}={value}: it must be above 0, or None for the default")
        learner = student(rag, train, name)
        super().__init__(rag, parts=[learner.part], depth=k, exclude_ids=exclude_ids)
        self.student = learner
        self.temperature = temperature or self.student.temperature
        self.teacher_temperature = teacher_temperature
        self.divergence = forward_kl if direction == "forward" else reverse_kl
        self.target = target
        self.scorer = CachedScorer(scorer)

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, and how sure teacher and student are; 0, with a graph, when every teacher is flat."""
        documents = self.candidates(batch)
        questions = [example.question for example in batch]
        scores = self.student.scores(questions, documents) / self.temperature  # [n, k]
        taught = self.teacher_scores(batch, documents).to(scores.device)  # [n, k]
        present = torch.isfinite(taught)
        spread = taught.masked_fill(~present, -torch.inf).amax(-1) - taught.masked_fill(~present, torch.inf).amin(-1)
        useful = spread > _FLAT  # [n]
        target = self.target(taught, self.teacher_temperature)
        losses = self.divergence(target, scores)  # [n]
        ranked = torch.softmax(scores.detach(), -1)
        return {
            "loss": torch.where(useful, losses, 0.0).mean(),
            "teacher_entropy": float(entropy(target).mean()),
            "student_entropy": float(entropy(ranked).mean()),
            "flat_teachers": float((~useful).float().mean()),
        }

    def teacher_scores(self, batch: Sequence[Example], documents: Sequence[Sequence[Document]]) -> Tensor:
        """What the teacher says of each document: `[n, k]`, `-inf` where a query has fewer than k."""
        return pad_sequence(self.opinions(batch, documents), batch_first=True, padding_value=-torch.inf)

    @abstractmethod
    def opinions(self, batch: Sequence[Example], documents: Sequence[Sequence[Document]]) -> list[Tensor]:
        """The teacher's scores of each example's documents, `[k]` each, without gradient or dropout."""

    def extra_state(self) -> dict[str, Tensor]:
        """The teacher's scores so far: asking again takes time, and in another batch gives other last bits."""
        return self.scorer.memory()

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `extra_state` gave."""
        self.scorer.recall(state)
