"""BM25, the lexical baseline that every dense retriever should be shown beside (Robertson and Zaragoza 2009).

The scoring is bm25s', over lower-cased runs of letters and digits. BM25 has variants that rank differently; with tf
times a word in a document of length l, l̄ the mean length, df documents of N that have it, and K = k1 (1 - b + b l/l̄),
a word's share in the score is

| variant     | idf                                       | times                                            |
|-------------|-------------------------------------------|--------------------------------------------------|
| `lucene`    | log(1 + (N - df + 0.5) / (df + 0.5))      | tf / (tf + K)                                    |
| `robertson` | log((N - df + 0.5) / (df + 0.5)), 0 below | tf / (tf + K)                                    |
| `atire`     | log(N / df)                               | (k1 + 1) tf / (tf + K)                           |
| `bm25l`     | log((N + 1) / (df + 0.5))                 | (k1 + 1) (c + δ) / (k1 + c + δ), c = k1 tf/K, δ = 0.5 |
| `bm25+`     | log((N + 1) / df)                         | (k1 + 1) tf / (tf + K) + δ, δ = 1                |

(Kamphuis et al. 2020; Lv and Zhai 2011 for the last two, which give a word that is not there its value at tf = 0.)

>>> documents = [Document("the cat sat", id="1"), Document("a dog ran", id="2"), Document("birds fly", id="3")]
>>> bm25 = LexicalRetriever(documents)
>>> [hit.document.id for hit in bm25.retrieve(["which dog?"], k=1)[0]]
['2']
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import bm25s
import numpy as np

from fedrag.errors import ConfigError, InputError
from fedrag.filters import compile_filter
from fedrag.types import Document, Hit, KnowledgeStore, Where

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG for itself, and would tell every program's log

Variant = Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]

_WORD = re.compile(r"[^\W_]+")
_DELTA = {"bm25l": 0.5, "bm25+": 1.0}


@runtime_checkable
class Versioned(Protocol):
    """A store that tells in no time whether its documents have changed, as `MemoryStore` does."""

    @property
    def version(self) -> object:
        """Equal as long as the documents are the same."""
        ...


@dataclass(frozen=True, slots=True)
class _Index:
    version: object
    documents: list[Document]
    scorer: Any  # None where there is no document

    def __deepcopy__(self, memo: object) -> _Index:
        """Itself: it is never changed, and a copy of it is one of all documents, and of the store's columns."""
        return self


class LexicalRetriever:
    """A retriever by the words that query and document share.

    Args:
        documents: a list, which stays as it is, or a knowledge store, whose documents are read: all changes to it are
            seen. A `MemoryStore` tells that there was one; another store is read through at each call to see it, which
            a database of many documents makes slow: use its own full-text search there.
        variant: the formula; see above.
        k1: how much a word that comes again still counts; 0 counts it once.
        b: how much long documents are discounted, 0 to 1.

    Raises:
        InputError: for an empty list.
        ConfigError: for settings that are impossible.
    """

    def __init__(
        self,
        documents: Sequence[Document] | KnowledgeStore,
        *,
        variant: Variant = "lucene",
        k1: float = 1.5,
        b: float = 0.75,
    ) -> None:
        if variant not in get_args(Variant):
            raise ConfigError(f"variant={variant!r}: it must be one of {', '.join(map(repr, get_args(Variant)))}")
        if not (0 <= k1 < float("inf") and 0 <= b <= 1):
            raise ConfigError(f"BM25 takes k1 >= 0 and b from 0 to 1, got {k1} and {b}")
        self.variant: Variant = variant
        self.k1 = k1
        self.b = b
        self.store = documents if isinstance(documents, KnowledgeStore) else None
        if self.store is None and not documents:
            raise InputError("BM25 needs at least one document")
        given = [] if isinstance(documents, KnowledgeStore) else list(documents)
        self._index = _Index(None, given, self._scorer(given))

    @property
    def documents(self) -> list[Document]:
        """What is searched, in the order in which it came."""
        return self._fresh().documents

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return up to k hits per query, best first; ties go to the document that came first."""
        return self._retrieve(queries, k, where, sharing=False)

    def matches(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """`retrieve`, without documents that share no word with the query, or none that tells one from another."""
        return self._retrieve(queries, k, where, sharing=True)

    def _retrieve(self, queries: Sequence[str], k: int, where: Where | None, *, sharing: bool) -> list[list[Hit]]:
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        keep = compile_filter(where) if where is not None else None
        index = self._fresh()
        size = len(index.documents)
        allowed = np.ones(size, dtype=bool)
        if keep is not None:
            allowed = np.fromiter((keep(document.metadata) for document in index.documents), bool, size)
        return [_search(index, query, k, allowed, sharing=sharing) for query in queries]

    def _fresh(self) -> _Index:
        """The index of the documents as they now are; threads that meet a change may both make it."""
        index, store = self._index, self.store
        if store is None:
            return index
        # asked before the documents are read: a change in between makes the next call read them again
        version = store.version if isinstance(store, Versioned) else None
        if version is None or index.version != version:
            documents = list(store.documents())
            same = documents == index.documents
            index = self._index = _Index(version, documents, index.scorer if same else self._scorer(documents))
        return index

    def _scorer(self, documents: Sequence[Document]) -> Any:
        if not documents:
            return None
        scorer = bm25s.BM25(method=self.variant, k1=self.k1, b=self.b, delta=_DELTA.get(self.variant, 0.0))
        scorer.index([_words(document.text) or [""] for document in documents], show_progress=False)
        return scorer


def _search(index: _Index, query: str, k: int, allowed: np.ndarray, *, sharing: bool) -> list[Hit]:
    if index.scorer is None:
        return []
    words = [word for word in _words(query) if word in index.scorer.vocab_dict]
    scores = index.scorer.get_scores(words) if words else np.zeros(len(index.documents), dtype=np.float32)
    if sharing:
        allowed = allowed & (scores > (_absent(index.scorer, words) if words else 0.0))
    order = np.argsort(np.where(allowed, -scores, np.inf), kind="stable")[: min(k, int(allowed.sum()))]
    return [Hit(index.documents[i], float(scores[i])) for i in order.tolist()]


def _absent(scorer: Any, words: Sequence[str]) -> float:
    """What a document with none of the words is given: nothing but by `bm25l` and `bm25+`."""
    if scorer.nonoccurrence_array is None:
        return 0.0
    return scorer.nonoccurrence_array[scorer.get_tokens_ids(words)].sum()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
