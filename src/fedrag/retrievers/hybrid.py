"""Hybrid retrieval: what several retrievers find, fused by rank. Words find names and numbers, vectors find meaning.

    store = MemoryStore()
    dense = DenseRetriever(SentenceEncoder("all-MiniLM-L6-v2"), store)
    hybrid = HybridRetriever([dense, LexicalRetriever(store)])

>>> from fedrag.types import Document
>>> texts = LexicalRetriever([Document("the old key", id="1"), Document("a river", id="2")])
>>> [(hit.document.id, round(hit.score, 4)) for hit in HybridRetriever([texts, texts]).retrieve(["key"], 2)[0]]
[('1', 0.0328)]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedrag.errors import ConfigError, InputError
from fedrag.ops.ranking import reciprocal_rank_fusion
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.types import Hit, Retriever, Where


class HybridRetriever:
    """Reciprocal rank fusion of retrievers (Cormack et al. 2009): score(d) = Σ_r w_r / (constant + rank_r(d)).

    Equal scores are ordered by the retriever that is named first, then by rank. Of a `LexicalRetriever` only documents
    that share a word with the query count: the rest would come in the order of the store.

    Args:
        retrievers: two or more; one `DenseRetriever` at most, where the system is to be trained or saved.
        depth: hits that each is asked for, or k where that is more.
        constant: how little the first ranks stand out; 60 is the paper's.
        weights: w, one per retriever; `None` is 1 for each.

    Raises:
        ConfigError: for settings that are impossible.
    """

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        *,
        depth: int = 50,
        constant: float = 60,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.inside = tuple(retrievers)
        self.depth = depth
        self.constant = constant
        self.weights = None if weights is None else tuple(map(float, weights))
        if len(self.inside) < 2 or depth < 1 or not 0 <= constant < math.inf:
            raise ConfigError(
                f"HybridRetriever takes two retrievers or more, depth >= 1 and constant >= 0, got {len(self.inside)}, "
                f"{depth} and {constant}"
            )
        for part in self.inside:
            if not callable(getattr(part, "retrieve", None)):
                raise ConfigError(
                    f"HybridRetriever fuses retrievers, a {type(part).__name__} has no retrieve(queries, k, where): "
                    "put a store into LexicalRetriever(store) or DenseRetriever(encoder, store)"
                )
        if self.weights is not None and (
            len(self.weights) != len(self.inside) or not all(0 < weight < math.inf for weight in self.weights)
        ):
            raise ConfigError(f"weights={weights}: give a number above 0 for each of {len(self.inside)} retrievers")

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return up to k hits per query, best first, each with its fused score. Raises `InputError` for k below 1."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        depth = max(k, self.depth)
        found = [
            (part.matches if isinstance(part, LexicalRetriever) else part.retrieve)(queries, depth, where)
            for part in self.inside
        ]
        return [self._fused([rows[n] for rows in found])[:k] for n in range(len(queries))]

    def _fused(self, lists: Sequence[Sequence[Hit]]) -> list[Hit]:
        documents = {hit.document.id: hit.document for hits in reversed(lists) for hit in hits}
        rankings = [[hit.document.id for hit in hits] for hits in lists]
        fused = reciprocal_rank_fusion(rankings, constant=self.constant, weights=self.weights)
        return [Hit(documents[id], score) for id, score in fused]
