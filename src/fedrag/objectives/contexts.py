"""What stands in a training prompt: which documents, how many, with the gold passage among them or not.

A generator that only ever trained on perfect contexts believes whatever it is given; one that trained on what an
untrained retriever finds learns to ignore it. Yoran et al. 2023, "RetRobust" (arXiv 2310.01558), train on passages that
are relevant, retrieved but irrelevant, and random, in equal shares:

    RALT(rag, k=20, contexts=Mixture(rag.dense.store, documents=1, gold=1 / 3, random=1 / 2))

Contexts are drawn anew at every step, from the one random generator that a checkpoint's state decides.

Relations: `fedrag.objectives.raft.Raft` is a mixture by the rule of RAFT; `fedrag.objectives.rows.sft_rows` writes
contexts down for other libraries' trainers.

>>> from fedrag.stores.memory import MemoryStore
>>> import torch
>>> store, passages = MemoryStore(), [Document(f"Fact {n}.", id=f"d{n}") for n in range(9)]
>>> store.add(passages, torch.eye(9))
>>> mixture = Mixture(store, documents=3, gold=1.0)
>>> drawn = mixture(Example("Which fact?", ["7"], positives=["d7"]), passages[:5], Random(0))
>>> len(drawn), "d7" in [document.id for document in drawn]
(3, True)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from random import Random
from typing import Protocol

from fedrag.errors import ConfigError
from fedrag.types import Document, Example, KnowledgeStore


class Contexts(Protocol):
    """Any function that says what stands in one training prompt, in which order."""

    def __call__(self, example: Example, retrieved: Sequence[Document], dice: Random, /) -> list[Document]:
        """Return the documents for an example, of those retrieved (best first) or others; chance is `dice` alone."""
        ...


@dataclass(frozen=True)
class Mixture:
    """Contexts of the gold passage, near misses (retrieved, and not positive) and random passages, in random order.

    Args:
        store: where golds and random passages come from. Its ids are read once: make a new mixture when documents
            were removed.
        documents: how many there are, gold included; of several numbers one is drawn each time, all equally likely.
        gold: the probability that one of the example's positives is among them, at any place equally likely. Where it
            is not, a distractor is in its place, so that the number of documents is no clue.
        random: the probability of each distractor to be drawn from the whole store in place of the near misses. Where
            there are too few near misses, random ones stand in.
        keep: take positives that were retrieved for near misses like any other: what was retrieved stays as it is, and
            `gold` is the probability for the contexts that have none. With `documents` as many as are retrieved, this
            trains on the retriever's own results, and puts golds only where they are missing.
        apart: a metadata key, "source" say: no distractor shares its value with a positive, since a neighbouring chunk
            may hold the answer as well.

    A positive is never a distractor. An example without positives has distractors alone. Raises `ConfigError` for
    numbers out of range.
    """

    store: KnowledgeStore
    _: KW_ONLY
    documents: int | Sequence[int]
    gold: float
    random: float = 0.0
    keep: bool = False
    apart: str | None = None

    def __post_init__(self) -> None:
        sizes = self._sizes
        if not sizes or min(sizes) < 1 or not 0 <= self.gold <= 1 or not 0 <= self.random <= 1:
            raise ConfigError(
                f"Mixture takes documents >= 1, gold and random in [0, 1], "
                f"got {self.documents}, {self.gold} and {self.random}"
            )

    def __call__(self, example: Example, retrieved: Sequence[Document], dice: Random, /) -> list[Document]:
        """Draw the documents of one prompt."""
        golds = example.positives
        barred = self._population.related(golds) if self.apart else set(golds)
        near = [d for d in retrieved if d.id not in barred or (self.keep and d.id in golds)]
        size = dice.choice(self._sizes)
        strangers = sum(dice.random() < self.random for _ in range(size))
        drawn = dice.sample(near, min(size - strangers, len(near)))
        if len(drawn) < size:
            drawn += self._population.draw(size - len(drawn), {*barred, *(d.id for d in drawn)}, dice)
        dice.shuffle(drawn)
        if golds and not any(d.id in golds for d in drawn) and dice.random() < self.gold:
            del drawn[size - 1 :]
            drawn.insert(dice.randrange(len(drawn) + 1), *self.store.get([dice.choice(golds)]))
        return drawn

    @property
    def _sizes(self) -> Sequence[int]:
        return (self.documents,) if isinstance(self.documents, int) else self.documents

    @cached_property
    def _population(self) -> _Population:
        return _Population(self.store, self.apart)


class _Population:
    """The ids of a whole store, and which of them share a source."""

    def __init__(self, store: KnowledgeStore, key: str | None) -> None:
        self.store = store
        self.ids: list[str] = []
        self.source: dict[str, str] = {}
        self.members: dict[str, list[str]] = defaultdict(list)
        for document in store.documents():
            self.ids.append(document.id)
            if key and (value := document.metadata.get(key)) is not None:
                self.source[document.id] = str(value)
                self.members[str(value)].append(document.id)

    def related(self, ids: Sequence[str]) -> set[str]:
        """These ids, and those of their sources."""
        return {*ids, *(other for id in ids if id in self.source for other in self.members[self.source[id]])}

    def draw(self, count: int, barred: Collection[str], dice: Random) -> list[Document]:
        """So many documents, all those that are not barred equally likely; fewer where there are no more."""
        some = dice.sample(self.ids, min(count + len(barred), len(self.ids)))
        return self.store.get([id for id in some if id not in barred][:count])
