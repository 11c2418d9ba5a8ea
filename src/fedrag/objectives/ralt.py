"""Retrieval-augmented language model tuning: teach the generator to read what is retrieved.

Lin et al. 2023, "RA-DIT" (arXiv 2310.01352), section 2.2: for an example with answer y and the documents retrieved
for its question, minimise -log p(y | documents, question), the answer and its end alone being supervised.

    loss = 1/n Σ_examples Σ_rows w_row · (-1/T log p(y, EOS | prompt_row)),    Σ_rows of an example w_row = 1

so that every example weighs the same, however many rows or tokens it has. RA-DIT's rows hold one document each
(`documents_per_row=1`) and weigh the same, too; the default puts into one row what asking puts into one prompt.

With one document per row, rows may weigh what their documents weigh: the prior p(d | q) = softmax(s(q, d) / τ) bounds
the marginal likelihood of RAG-Sequence (Lewis et al. 2020, arXiv 2005.11401) from below, and the posterior
p(d | q, y) = softmax(log p(d | q) + log p(y | q, d)) has exactly its gradient, documents that explain the answer
counting more. Neither is a term of the gradient: the retriever stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedrag.errors import ConfigError
from fedrag.objectives.contexts import Contexts
from fedrag.objectives.objective import ExcludeIds, Objective, causal, first_answer, one_of
from fedrag.objectives.towers import prior_temperature
from fedrag.ops.modes import evaluating
from fedrag.ops.targets import posterior
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.nested import find
from fedrag.types import Document, Example


class RALT(Objective):
    """Train the generator to answer from retrieved documents.

    Requirements: a `CausalLM`; examples with answers (the first one is the target; `()` has the empty answer).

    Args:
        rag: the system; its retriever finds the documents and stays as it is.
        k: documents retrieved per example; `None` takes `rag.top_k`.
        documents_per_row: documents in one prompt; `None` puts there what asking does: all k, or one each where the
            system's reader is the ensemble. 1 is RA-DIT's.
        weighting: what the rows of one example weigh: the same ("uniform"), the "prior" p(d | q) of the vectors with
            the system's temperature, or the "posterior" p(d | q, y). The last two need one document per row and a
            `DenseRetriever`; inside another retriever its scores are divided by a temperature of their own.
        shuffle: present the documents of a prompt in random order while training, so that their rank is no clue.
        contexts: draws what stands in an example's prompts while training, from the k documents retrieved and others:
            a `Mixture`, a `Raft` or any function of that kind. Their order is kept; evaluation reads the best
            `rag.top_k` instead. `None` trains and evaluates on what is retrieved.
        exclude_ids: documents that must not be in an example's prompts.

    Relations: `k=0` is closed-book answer tuning. With one row per example and answers of equal length the loss is
    TRL's completion-only SFT loss on the same prompts, which `sft_rows` writes. With the posterior, and the answer's
    tokens summed, its gradient is the generator's half of `RAGSequence`.
    """

    def __init__(
        self,
        rag: RAGSystem,
        *,
        k: int | None = None,
        documents_per_row: int | None = None,
        weighting: Literal["uniform", "prior", "posterior"] = "uniform",
        shuffle: bool = True,
        contexts: Contexts | None = None,
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        causal(rag, "RALT")
        depth = rag.top_k if k is None else k
        per_row = 1 if documents_per_row is None and rag.reader == "ensemble" else documents_per_row
        if depth < 0 or (per_row is not None and per_row < 1):
            raise ConfigError(f"RALT takes k >= 0 and documents_per_row >= 1, got {depth} and {per_row}")
        one_of("weighting", weighting, ("uniform", "prior", "posterior"))
        if weighting != "uniform" and (per_row != 1 or find(rag.retriever, DenseRetriever) is None):
            raise ConfigError(
                f"weighting={weighting!r} weighs single documents by their scores: it needs documents_per_row=1 and a "
                f"DenseRetriever, got {per_row} and a {type(rag.retriever).__name__}"
            )
        super().__init__(rag, parts=["generator"], depth=depth, exclude_ids=exclude_ids)
        self.documents_per_row = per_row
        self.weighting = weighting
        self.shuffle = shuffle
        self.contexts = contexts

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, and the mean number of supervised tokens per example."""
        generator = self.generator
        dice = random.Random(int(torch.randint(2**62, ())) if self.training else 0)
        answers = self.answers(batch)
        lengths = [len(generator.target_ids(answer)) for answer in answers]
        found = self.candidates(batch) if self.depth else [[] for _ in batch]
        rows = [self._rows(example, row, dice) for example, row in zip(batch, found, strict=True)]
        sizes = list(map(len, rows))
        prompts = [
            self.rag.prompt_for(example.question, row, answer_tokens=tokens)
            for example, some, tokens in zip(batch, rows, lengths, strict=True)
            for row in some
        ]
        targets = [answer for answer, size in zip(answers, sizes, strict=True) for _ in range(size)]
        logprobs = pad_sequence(list(generator.logprobs(prompts, targets).split(sizes)), batch_first=True)  # [n, k]
        tokens = torch.tensor(lengths, device=logprobs.device)  # [n]
        means = (self._weights(batch, rows, logprobs) * logprobs).sum(-1) / tokens  # [n]
        supervised = sum(size * length for size, length in zip(sizes, lengths, strict=True))
        return {"loss": -means.mean(), "answer_tokens": supervised / len(batch)}

    def answer_of(self, example: Example) -> str | None:
        """The target: the first answer, or the empty one; `None` where it is not known."""
        return first_answer(example)

    def _rows(self, example: Example, found: Sequence[Document], dice: random.Random) -> list[list[Document]]:
        documents = self._documents(example, found, dice)
        size = self.documents_per_row or max(len(documents), 1)
        return [documents[start : start + size] for start in range(0, len(documents), size)] or [[]]

    def _documents(self, example: Example, found: Sequence[Document], dice: random.Random) -> list[Document]:
        if self.contexts is None:
            return dice.sample(found, len(found)) if self.training and self.shuffle else list(found)
        if not self.training:
            return list(found[: self.rag.top_k])
        out = set(self.exclude_ids(example)) if self.exclude_ids else set[str]()
        known = replace(example, positives=[id for id in example.positives if id not in out])
        return [document for document in self.contexts(known, found, dice) if document.id not in out]

    @torch.no_grad()
    def _weights(self, batch: Sequence[Example], rows: Sequence[list[list[Document]]], logprobs: Tensor) -> Tensor:
        """What each row weighs, `[n, k]`, 0 where an example has fewer; no gradient goes through it."""
        scores = pad_sequence([torch.zeros(len(some)) for some in rows], batch_first=True, padding_value=-torch.inf)
        scores = scores.to(logprobs.device)  # [n, k]
        if self.weighting != "uniform" and (full := [n for n, some in enumerate(rows) if some[0]]):
            dense = self.rag.dense
            with evaluating(dense.network):  # a joint loss may have it in training mode
                found = dense.scores([batch[n].question for n in full], [[row[0] for row in rows[n]] for n in full])
            scores[full] = found.to(scores) / prior_temperature(self.rag)
        return posterior(scores, logprobs) if self.weighting == "posterior" else torch.softmax(scores, -1)
