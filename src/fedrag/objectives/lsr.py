"""Language-model supervised retrieval: teach the retriever which documents help the generator.

Shi et al. 2023, "REPLUG" (arXiv 2301.12652), section 4, and Lin et al. 2023, "RA-DIT" (arXiv 2310.01352),
section 2.3. For the k documents retrieved for a question,

    t = softmax(log p(y | q, d) / τ_t)          the teacher: how much each document helps to the answer y
    P = softmax(s(q, d) / τ_s)                  the student: how the retriever ranks them
    loss = 1/n Σ KL(t || P)                     (`direction="forward"`; "reverse" is KL(P || t))

Examples whose teacher is flat add nothing to the sum and count in n, so that the loss of a batch is the mean of the
losses of its parts: gradient accumulation, several ranks and evaluation in batches change nothing.

The papers write the reverse direction; every released code, and the default here, minimises the forward one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedrag.errors import ConfigError, DataError
from fedrag.generators.causal import CausalLM
from fedrag.generators.score_cache import CachedScorer
from fedrag.objectives.objective import ExcludeIds, Objective, one_of
from fedrag.ops.divergence import forward_kl, reverse_kl
from fedrag.ops.targets import entropy, likelihood
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example

_TEACHER_TEMPERATURE = {"sum": 1.0, "mean": 0.1}
_FLAT = 1e-3  # nats: a smaller spread of the teacher's scores says nothing about the documents


class LSR(Objective):
    """Train the retriever towards the documents under which the frozen generator finds the answer likely.

    Requirements: a `DenseRetriever`, a `CausalLM`, examples with an answer. The generator's scores are cached by
    generator, prompt and answer, so epochs after the first cost little.

    Args:
        rag: the system. With `train="query"`, a one-tower encoder gets a query tower of its own here.
        k: documents retrieved per example.
        train: "query" moves the query tower alone, so that the index stays valid; "both" moves documents too.
        temperature: τ_s; `None` is 0.05 for cosine encoders and 1 for dot-product ones.
        normalisation: log p(y | q, d) as the "sum" over the answer's tokens or as their "mean".
        teacher_temperature: τ_t; `None` is the one that belongs to the normalisation: 1 for sums, 0.1 for means
            (sums grow with the answer and sharpen the teacher by themselves, means leave it near uniform).
        direction: of the Kullback-Leibler divergence.
        exclude_ids: documents that must not be candidates of an example.

    Logged: `teacher_entropy` and `student_entropy` in nats (log k is uniform: nothing to learn, or nothing
    learnt), `flat_teachers`: the share of examples skipped because no document helped more than another.

    Relations: sentence-transformers' `DistillKLDivLoss` on the same scores is τ_s² times this loss. `Contrastive`
    is the same divergence from a one-hot target.
    """

    def __init__(
        self,
        rag: RAGSystem,
        *,
        k: int = 8,
        train: Literal["query", "both"] = "query",
        temperature: float | None = None,
        normalisation: Literal["sum", "mean"] = "sum",
        teacher_temperature: float | None = None,
        direction: Literal["forward", "reverse"] = "forward",
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        if not isinstance(rag.generator, CausalLM):
            raise ConfigError(
                f"LSR is taught by a CausalLM, the system's generator is a {type(rag.generator).__name__}"
            )
        if k < 2:
            raise ConfigError(f"LSR compares documents, so k must be at least 2, got {k}")
        one_of("train", train, ("query", "both"))
        one_of("normalisation", normalisation, tuple(_TEACHER_TEMPERATURE))
        one_of("direction", direction, ("forward", "reverse"))
        for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value}: it must be above 0, or None for the default")
        encoder = rag.dense.encoder
        if train == "query":
            encoder.untie()
        super().__init__(
            rag, parts=["retriever/query" if train == "query" else "retriever/"], depth=k, exclude_ids=exclude_ids
        )
        self.temperature = temperature or (0.05 if encoder.model.similarity_fn_name == "cosine" else 1.0)
        self.normalisation = normalisation
        self.teacher_temperature = teacher_temperature or _TEACHER_TEMPERATURE[normalisation]
        self.divergence = forward_kl if direction == "forward" else reverse_kl
        self.teacher = (rag.generator,)  # in a tuple: as a submodule it would be put into training mode
        self.scorer = CachedScorer(rag.generator)

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, and how sure teacher and student are; 0, with a graph, when every teacher is flat."""
        documents = self.candidates(batch)
        questions = [example.question for example in batch]
        scores = self.rag.dense.scores(questions, documents) / self.temperature  # [n, k]
        taught = self.teacher_scores(batch, documents).to(scores.device)  # [n, k]
        present = torch.isfinite(taught)
        spread = taught.masked_fill(~present, -torch.inf).amax(-1) - taught.masked_fill(~present, torch.inf).amin(-1)
        useful = spread > _FLAT  # [n]
        target = likelihood(taught, self.teacher_temperature)
        losses = self.divergence(target, scores)  # [n]
        student = torch.softmax(scores.detach(), -1)
        return {
            "loss": torch.where(useful, losses, 0.0).mean(),
            "teacher_entropy": float(entropy(target).mean()),
            "student_entropy": float(entropy(student).mean()),
            "flat_teachers": float((~useful).float().mean()),
        }

    def extra_state(self) -> dict[str, Tensor]:
        """The teacher's scores so far: asking again takes time, and in another batch gives other last bits."""
        return self.scorer.memory()

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `extra_state` gave."""
        self.scorer.recall(state)

    @torch.no_grad()
    def teacher_scores(self, batch: Sequence[Example], documents: Sequence[Sequence[Document]]) -> Tensor:
        """log p(answer, EOS | question, document), normalised: `[n, k]`, `-inf` where a query has fewer than k."""
        answers = [example.answers[0] for example in batch if example.answers]
        if len(answers) < len(batch):
            raise DataError(
                f"LSR needs an answer to every question, {len(batch) - len(answers)} of these {len(batch)} examples "
                "have none: leave them out, or train on their positives with Contrastive"
            )
        (teacher,) = self.teacher
        lengths = [len(teacher.target_ids(answer)) for answer in answers]
        prompts = [
            self.rag.prompt_for(example.question, [document], answer_tokens=tokens)
            for example, row, tokens in zip(batch, documents, lengths, strict=True)
            for document in row
        ]
        targets = [answer for answer, row in zip(answers, documents, strict=True) for _ in row]
        sizes = [len(row) for row in documents]
        group = sizes[0] if len(set(sizes)) == 1 else 1
        flat = self.scorer.logprobs(prompts, targets, group=group)
        scores = torch.full((len(batch), max(sizes)), -torch.inf, device=flat.device)
        for n, (row, tokens) in enumerate(zip(flat.split(sizes), lengths, strict=True)):
            scores[n, : len(row)] = row / tokens if self.normalisation == "mean" else row
        return scores
