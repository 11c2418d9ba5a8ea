"""Retrieval-augmented language model tuning: teach the generator to read what is retrieved.

Lin et al. 2023, "RA-DIT" (arXiv 2310.01352), section 2.2: for an example with answer y and the documents retrieved
for its question, minimise -log p(y | documents, question), the answer and its end alone being supervised.

    loss = 1/n Σ_examples Σ_rows w_row · (-1/T log p(y, EOS | prompt_row)),    w_row = 1 / rows of the example

so that every example weighs the same, however many rows or tokens it has. RA-DIT's rows hold one document each
(`documents_per_row=1`); the default puts all of `rag.top_k` into one row, because that is how the system will ask.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from fedrag.errors import ConfigError, DataError
from fedrag.generators.causal import CausalLM
from fedrag.objectives.objective import ExcludeIds, Objective
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example


class RALT(Objective):
    """Train the generator to answer from retrieved documents.

    Requirements: a `CausalLM`; examples with answers (the first one is the target; `()` has the empty answer).

    Args:
        rag: the system; its retriever finds the documents and stays as it is.
        k: documents retrieved per example; `None` takes `rag.top_k`.
        documents_per_row: documents in one prompt; `None` puts all k in one, 1 is RA-DIT's.
        shuffle: present the documents of a prompt in random order while training, so that their rank is no clue.
        gold_share: of the training examples whose positives were not retrieved, the share that gets one of them in
            place of the last document, `exclude_ids` aside. 0 trains on what is retrieved; the documents come from
            the store of a `DenseRetriever`.
        exclude_ids: documents that must not be in an example's prompts.

    Relations: `k=0` is closed-book answer tuning. With one row per example and answers of equal length the loss is
    TRL's completion-only SFT loss on the same prompts. Its rows weighted by the posterior are the generator's half
    of RAG-Sequence.
    """

    def __init__(
        self,
        rag: RAGSystem,
        *,
        k: int | None = None,
        documents_per_row: int | None = None,
        shuffle: bool = True,
        gold_share: float = 0.0,
        exclude_ids: ExcludeIds | None = None,
    ) -> None:
        if not isinstance(rag.generator, CausalLM):
            raise ConfigError(f"RALT trains a CausalLM, the system's generator is a {type(rag.generator).__name__}")
        depth = rag.top_k if k is None else k
        if depth < 0 or not 0 <= gold_share <= 1 or (documents_per_row is not None and documents_per_row < 1):
            raise ConfigError(
                f"RALT takes k >= 0, documents_per_row >= 1 and gold_share in [0, 1], "
                f"got {depth}, {documents_per_row} and {gold_share}"
            )
        if gold_share:
            _ = rag.dense  # golds come from its store: say so now, not in the middle of training
        super().__init__(rag, parts=["generator"], depth=depth, exclude_ids=exclude_ids)
        self.documents_per_row = documents_per_row
        self.shuffle = shuffle
        self.gold_share = gold_share

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, and the mean number of supervised tokens per example."""
        generator = self.generator
        dice = random.Random(int(torch.randint(2**62, ())) if self.training else 0)
        prompts: list[str] = []
        answers: list[str] = []
        weights: list[float] = []
        supervised = 0
        for example, found in zip(batch, self.documents(batch), strict=True):
            answer = self.answer_of(example)
            rows = self._rows(example, found, dice)
            tokens = len(generator.target_ids(answer))
            supervised += tokens * len(rows)
            for row in rows:
                prompts.append(self.rag.prompt_for(example.question, row, answer_tokens=tokens))
                answers.append(answer)
                weights.append(1 / (len(rows) * tokens))
        logprobs = generator.logprobs(prompts, answers)  # [rows]
        weight = torch.tensor(weights, device=logprobs.device)
        return {"loss": -(weight * logprobs).sum() / len(batch), "answer_tokens": supervised / len(batch)}

    def answer_of(self, example: Example) -> str:
        """The first answer; the empty one where there is none to give."""
        if example.answers is None:
            raise DataError("RALT needs an answer to every question, an example has answers=None: leave it out")
        return example.answers[0] if example.answers else ""

    def documents(self, batch: Sequence[Example]) -> list[list[Document]]:
        """What is retrieved for each example; a subclass may mix in documents of its own, anew at each step."""
        return self.candidates(batch) if self.depth else [[] for _ in batch]

    def _rows(self, example: Example, found: Sequence[Document], dice: random.Random) -> list[list[Document]]:
        documents = list(found)
        if self.training and self.gold_share and documents:
            out = self.exclude_ids(example) if self.exclude_ids else ()
            golds = [id for id in example.positives if id not in out]
            missing = not {document.id for document in documents} & set(example.positives)
            if missing and golds and dice.random() < self.gold_share:
                documents[-1:] = self.rag.dense.store.get([dice.choice(golds)])
        if self.training and self.shuffle:
            dice.shuffle(documents)
        size = self.documents_per_row or max(len(documents), 1)
        return [documents[start : start + size] for start in range(0, len(documents), size)] or [[]]
