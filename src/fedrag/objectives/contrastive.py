"""Contrastive tuning of the retriever on labelled passages.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4) with in-batch negatives, as in DPR (Karpukhin et al.
2020, arXiv 2004.04906): with the documents D of the whole batch as candidates,

    loss = 1/n Σ_q -log exp(s(q, d⁺)/τ) / Σ_{d in D} exp(s(q, d)/τ)

Other positives of the same question are taken out of the sum, since they are no negatives. Hard negatives, the
documents that the retriever itself ranks high, join D when they are given (`Example.negatives`) or mined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrag.errors import ConfigError, DataError
from fedrag.objectives.mining import HardNegatives, Miner
from fedrag.objectives.objective import Objective
from fedrag.objectives.towers import Side, trained_side
from fedrag.ops.divergence import forward_kl
from fedrag.ops.gradcache import embed_in_pieces
from fedrag.ops.similarity import all_pairs
from fedrag.ops.targets import one_hot
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example


class Contrastive(Objective):
    """Train the retriever to rank an example's positive above every other document of the batch.

    Requirements: a `DenseRetriever`; examples with at least one positive. Their documents come from the store.

    Inputs per example: the question, one positive (drawn anew each time while training), all its negatives, and
    `mine.per_example` mined ones (drawn anew each time while training, the hardest when measured).

    Args:
        rag: the system.
        train: "both" moves queries and documents (re-index afterwards, which the trainer does); "query" moves the
            query tower alone, and gives a one-tower encoder a query tower of its own.
        temperature: τ.
        chunk: encode this many texts at a time and hold no other activations (GradCache), so that the batch may be
            large; `None` encodes the batch at once.
        mine: mine hard negatives from the store, with the encoder as it is, whenever the trainer refreshes candidates.

    Logged: `batch_accuracy`, the share of questions whose positive scores best in the batch; with `mine`, `admitted`:
    the mean number of documents that the guards leave to draw from.

    Relations: without negatives this is sentence-transformers' `MultipleNegativesRankingLoss(scale=1/τ)`, with
    `chunk` its cached form. The same divergence as `LSR`, from a one-hot target.
    """

    def __init__(
        self,
        rag: RAGSystem,
        *,
        train: Side = "both",
        temperature: float = 0.05,
        chunk: int | None = None,
        mine: HardNegatives | None = None,
    ) -> None:
        if temperature <= 0 or (chunk is not None and chunk < 1):
            raise ConfigError(f"Contrastive takes temperature > 0 and chunk >= 1, got {temperature} and {chunk}")
        super().__init__(rag, parts=[trained_side(rag, train, "Contrastive")], depth=mine.ranks[1] if mine else 0)
        self.temperature = temperature
        self.chunk = chunk
        self.miner = Miner(rag, mine) if mine else None

    def loss(self, batch: Sequence[Example]) -> dict[str, Tensor | float]:
        """The loss above, and the numbers to log."""
        encoder, store = self.rag.dense.encoder, self.rag.dense.store
        if bare := sum(not example.positives for example in batch):
            raise DataError(
                f"Contrastive needs a positive document for every question, {bare} of these {len(batch)} examples have "
                "none: put document ids into Example.positives, or use LSR, which needs none"
            )
        own = [self._positive(example) for example in batch]
        drawn: list[str] = []
        told: dict[str, float] = {}
        if self.miner:
            mined = [row[1:] for row in self.candidates(batch)]
            told = {"admitted": sum(map(len, mined)) / len(batch)}
            drawn = [document.id for row in mined for document in self._drawn(row, self.miner.guards)]
        wanted = dict.fromkeys([*own, *(id for example in batch for id in example.negatives), *drawn])
        documents = store.get(list(wanted))
        size = self.chunk or max(len(batch), len(documents))
        queries = embed_in_pieces(encoder.encode_queries, [example.question for example in batch], size)  # [n, d]
        vectors = embed_in_pieces(self._encode, documents, size)  # [m, d]
        scores = all_pairs(queries, vectors) / self.temperature  # [n, m]
        place = {document.id: column for column, document in enumerate(documents)}
        positive = _marked([[place[id]] for id in own], scores)
        also = _marked([[place[id] for id in e.positives if id in place] for e in batch], scores)
        scores = scores.masked_fill(also & ~positive, -torch.inf)
        best = positive.gather(1, scores.detach().argmax(-1, keepdim=True))
        loss = forward_kl(one_hot(positive), scores).mean()
        return {"loss": loss, "batch_accuracy": float(best.float().mean()), **told}

    def find(self, examples: Sequence[Example]) -> list[list[Document]]:
        """The first positive of each example, so that no list is empty, and the negatives that are admitted."""
        if self.miner is None:
            return super().find(examples)
        mined = self.miner.find(examples)
        positives = self.rag.dense.store.get([example.positives[0] for example in examples])
        return [[positive, *row] for positive, row in zip(positives, mined, strict=True)]

    def extra_state(self) -> dict[str, Tensor]:
        """The scores of a cross-encoder that guards the negatives."""
        return self.miner.scorer.memory() if self.miner and self.miner.scorer is not None else {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `extra_state` gave."""
        if self.miner and self.miner.scorer is not None:
            self.miner.scorer.recall(state)

    def _drawn(self, admitted: Sequence[Document], guards: HardNegatives) -> list[Document]:
        order = torch.randperm(len(admitted)) if self.training and guards.draw == "random" else range(len(admitted))
        return [admitted[int(place)] for place in order[: guards.per_example]]

    def _encode(self, documents: Sequence[Document]) -> Tensor:
        return self.rag.dense.document_vectors(documents)

    def _positive(self, example: Example) -> str:
        if not self.training:
            return example.positives[0]
        return example.positives[int(torch.randint(len(example.positives), ()))]


def _marked(columns: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """True at the columns named for each row, of the shape of `like` [n, m]."""
    marks = torch.zeros_like(like, dtype=torch.bool)
    rows = [row for row, named in enumerate(columns) for _ in named]
    marks[rows, [column for named in columns for column in named]] = True
    return marks
