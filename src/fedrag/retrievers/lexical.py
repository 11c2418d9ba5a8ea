"""BM25, the lexical baseline that every dense retriever should be shown beside (Robertson and Zaragoza 2009).

The scoring is bm25s' (Lucene's variant, k1 = 1.5, b = 0.75), over lower-cased runs of letters and digits.

>>> documents = [Document("the cat sat", id="1"), Document("a dog ran", id="2"), Document("birds fly", id="3")]
>>> bm25 = LexicalRetriever(documents)
>>> [hit.document.id for hit in bm25.retrieve(["which dog?"], k=1)[0]]
['2']
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import bm25s
import numpy as np

from fedrag.errors import InputError
from fedrag.filters import compile_filter
from fedrag.types import Document, Hit, Where

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG for itself, and would tell every program's log

_WORD = re.compile(r"[^\W_]+")


class LexicalRetriever:
    """A retriever over a fixed list of documents, by the words that query and document share."""

    def __init__(self, documents: Sequence[Document]) -> None:
        if not documents:
            raise InputError("BM25 needs at least one document")
        self.documents = list(documents)
        self._index = bm25s.BM25()
        self._index.index([_words(document.text) or [""] for document in self.documents], show_progress=False)

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return up to k hits per query, best first; ties go to the document that came first."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        allowed = np.ones(len(self.documents), dtype=bool)
        if where is not None:
            keep = compile_filter(where)
            allowed = np.fromiter((keep(document.metadata) for document in self.documents), bool, len(self.documents))
        return [self._search(query, k, allowed) for query in queries]

    def _search(self, query: str, k: int, allowed: np.ndarray) -> list[Hit]:
        words = [word for word in _words(query) if word in self._index.vocab_dict]
        scores = self._index.get_scores(words) if words else np.zeros(len(self.documents), dtype=np.float32)
        order = np.argsort(np.where(allowed, -scores, np.inf), kind="stable")[: min(k, int(allowed.sum()))]
        return [Hit(self.documents[i], float(scores[i])) for i in order.tolist()]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
