"""Language-model supervised retrieval: teach the retriever which documents help the generator.

Shi et al. 2023, "REPLUG" (arXiv 2301.12652), section 4, and Lin et al. 2023, "RA-DIT" (arXiv 2310.01352),
section 2.3. For the k documents retrieved for a question,

    t = softmax(log p(y | q, d) / τ_t)          the teacher: how much each document helps to the answer y
    P = softmax(s(q, d) / τ_s)                  the student: how the retriever, or the reranker, ranks them
    loss = 1/n Σ KL(t || P)                     (`direction="forward"`; "reverse" is KL(P || t))

`target="leave_one_out"` is LOOP of ATLAS (Izacard et al. 2022, arXiv 2208.03299, section 2.2), which asks how much
worse the answer gets without a document: t = softmax(-log p(y | q, all candidates but d) / τ_t). ATLAS' perplexity
distillation (PDist) is the likelihood with `normalisation="mean"`.

The papers of REPLUG and RA-DIT write the reverse direction; every released code, and the default here, minimises the
forward one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from fedrag.objectives.objective import ExcludeIds, causal, one_of
from fedrag.objectives.taught import Direction, Target, Taught
from fedrag.objectives.towers import Learner
from fedrag.ops.modes import evaluating
from fedrag.ops.targets import leave_one_out, likelihood
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example

_TEACHER_TEMPERATURE = {"sum": 1.0, "mean": 0.1}
_TARGETS: dict[str, Target] = {"likelihood": likelihood, "leave_one_out": leave_one_out}


class LSR(Taught):
    """Train the retriever towards the documents under which the generator finds the answer likely.

    Requirements: a `DenseRetriever`, a `CausalLM`, examples with an answer. The generator's scores are cached by
    generator, prompt and answer, so epochs after the first cost little; while the generator itself is being trained,
    as in `Joint`, it is asked anew each time.

    Args:
        rag: the system. With `train="query"`, a one-tower encoder gets a query tower of its own here.
        k: documents retrieved per example.
        train: "query" moves the query tower alone, so that the index stays valid; "both" moves documents too;
            "reranker" moves the reranker of a `Reranked` system, on what its first stage finds.
        target: "likelihood" asks how likely each document alone makes the answer; "leave_one_out" (LOOP) how
            unlikely it gets when a document is taken away from all k, in prompts of k - 1 documents.
        temperature: τ_s; `None` is `rag.temperature` for a system that retrieves by vectors alone, else what the
            student's scores want: 0.05 for cosines, 1 for inner products and for a reranker.
        normalisation: log-likelihoods as the "sum" over the answer's tokens or as their "mean" (PDist).
        teacher_temperature: τ_t; `None` is the one that belongs to the normalisation: 1 for sums, 0.1 for means
            (sums grow with the answer and sharpen the teacher by themselves, means leave it near uniform).
        direction: of the Kullback-Leibler divergence.
        exclude_ids: documents that must not be candidates of an example.

    Logged: `teacher_entropy` and `student_entropy` in nats (log k is uniform: nothing to learn, or nothing
    learnt), `flat_teachers`: the share of examples skipped because no document helped more than another.

    Relations: sentence-transformers' `DistillKLDivLoss` on the same scores is τ_s² times this loss. `Distillation`
    is the same from a cross-encoder's scores, `Contrastive` from a one-hot target.
    """

    def __init__(
        self,
        rag: RAGSystem,
        *,
        k: int = 8,
        train: Learner = "query",
        target: Literal["likelihood", "leave_one_out"] = "likelihood",
        temperature: float | None = None,
        normalisation: Literal["sum", "mean"] = "sum",
        teacher_temperature: float | None = None,
        direction: Direction = "forward",
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        teacher = causal(rag, "LSR")
        one_of("target", target, tuple(_TARGETS))
        one_of("normalisation", normalisation, tuple(_TEACHER_TEMPERATURE))
        if teacher_temperature is None:
            teacher_temperature = _TEACHER_TEMPERATURE[normalisation]
        super().__init__(
            rag,
            teacher,
            k=k,
            train=train,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            direction=direction,
            exclude_ids=exclude_ids,
            target=_TARGETS[target],
        )
        self.normalisation = normalisation

    def answer_of(self, example: Example) -> str | None:
        """The first answer."""
        return next(iter(example.answers or ()), None)

    def opinions(self, batch: Sequence[Example], documents: Sequence[Sequence[Document]]) -> list[Tensor]:
        """log p(answer, EOS | question, document), or, for LOOP, given all documents but that one; normalised."""
        answers = self.answers(batch)
        lengths = [len(self.generator.target_ids(answer)) for answer in answers]
        prompts = [
            self.rag.prompt_for(example.question, read, answer_tokens=tokens)
            for example, row, tokens in zip(batch, documents, lengths, strict=True)
            for read in self._readings(row)
        ]
        targets = [answer for answer, row in zip(answers, documents, strict=True) for _ in row]
        sizes = [len(row) for row in documents]
        group = sizes[0] if len(set(sizes)) == 1 else 1
        # what a teacher in training says is of no use at the next step, and its fingerprint would cost a pass each time
        scorer = self.generator if self.generator.model.training else self.scorer
        with evaluating(self.generator.model):
            flat = scorer.logprobs(prompts, targets, group=group)
        rows = flat.split(sizes)
        if self.normalisation == "sum":
            return list(rows)
        return [row / tokens for row, tokens in zip(rows, lengths, strict=True)]

    def _readings(self, row: Sequence[Document]) -> list[list[Document]]:
        """What the generator reads to judge each document of a row."""
        if self.target is leave_one_out:
            return [[*row[:place], *row[place + 1 :]] for place in range(len(row))]
        return [[document] for document in row]
