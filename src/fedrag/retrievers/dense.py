"""Dense retrieval: an encoder and a knowledge store, and the promise that the two belong together.

The store remembers the fingerprint of the document encoder that wrote its vectors. When that encoder changes,
a query raises `StaleIndexError` in place of silently ranking by mismatched vectors; `refresh` re-embeds.

    retriever = DenseRetriever(SentenceEncoder("all-MiniLM-L6-v2"), MemoryStore())
    retriever.add(documents)                       # embeds, stores; started again, it skips what is there
    retriever.retrieve(["How do I rotate the key?"], k=5)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError, StaleIndexError, StoreError
from fedrag.ops.gradcache import embed_in_pieces
from fedrag.ops.modes import evaluating
from fedrag.ops.similarity import own_candidates
from fedrag.progress import Bar, track
from fedrag.types import Document, Encoder, Fillable, Hit, KnowledgeStore, Where

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=Encoder, default=SentenceEncoder)

_WINDOW = 16
"""Batches embedded between two writes to the store: enough to sort texts by length, few enough to lose little."""


@dataclass(slots=True)
class DenseRetriever(Generic[E]):
    """Find documents by the inner product of their vectors with the query's.

    Args:
        encoder: the towers: a `SentenceEncoder`, which the objectives train, or any other `Encoder`.
        store: the documents and their vectors.
        batch_size: texts encoded at a time, outside training.
    """

    encoder: E
    store: KnowledgeStore
    batch_size: int = field(default=64, kw_only=True)

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return up to k hits per query, best first.

        Raises:
            StaleIndexError: if another document encoder wrote the store's vectors.
        """
        if not queries:
            return []
        self.check_fresh()
        return self.store.search(self.embed_queries(queries), k, where)

    def scores(
        self, queries: Sequence[str], documents: Sequence[Sequence[Document]], *, chunk: int | None = None
    ) -> Tensor:
        """Score each query's own candidates, with gradient: `[n, k]` float32, `-inf` where a query has fewer than k.

        These scores come from the encoder, never from a search result, so a loss on them trains it. While the
        document side is frozen, vectors that the store already has are taken from there; else `chunk` documents are
        encoded at a time, and no other activations of theirs are held.
        """
        if len(queries) != len(documents) or not all(documents):
            raise InputError(
                f"scores() takes one non-empty list of documents per query, got {len(queries)} queries and lists of "
                f"lengths {[len(row) for row in documents]}"
            )
        unique = {document.id: document for row in documents for document in row}
        place = {id: i for i, id in enumerate(unique)}
        query_vectors = self.encoder.encode_queries(queries)  # [n, d]
        document_vectors = self.document_vectors(list(unique.values()), chunk=chunk)  # [unique, d]
        owner = [n for n, row in enumerate(documents) for _ in row]
        slot = [k for row in documents for k in range(len(row))]
        chosen = [place[document.id] for row in documents for document in row]
        index = torch.tensor([owner, slot, chosen], device=query_vectors.device)  # [3, s]
        return own_candidates(query_vectors, document_vectors[index[2]], index[0], index[1], max(map(len, documents)))

    def document_vectors(self, documents: Sequence[Document], *, chunk: int | None = None) -> Tensor:
        """Vectors `[n, d]` to train on: encoded with gradient, or the store's own while the document side is frozen."""
        parts = self.encoder.parts()
        if any(p.requires_grad for name, part in parts.items() if name != "query" for p in part.parameters()):
            texts = [document.text for document in documents]
            return embed_in_pieces(self.encoder.encode_documents, texts, chunk or len(texts) or 1)
        stored = [document.id for document in documents if document.id in self.store]
        if len(stored) == len(documents) and self.store.fingerprint == self.encoder.fingerprint:
            weights = next((weight for part in parts.values() for weight in part.parameters()), torch.empty(0))
            return self.store.vectors(stored).to(weights.device)
        return self.embed_documents(documents)

    def add(self, documents: Iterable[Document], *, progress: bool = True) -> None:
        """Embed and store documents; those that the store already holds, text and metadata alike, are skipped.

        Any iterable will do; one that is no sequence is read as it is embedded, and of it no more than a window and
        the ids are held. Interrupted and started again, it goes on with the first document that is missing. Documents
        longer than the encoder reads are embedded by their beginning; their number is logged as a warning.

        Raises:
            InputError: if there is no document, or two different ones share an id. In a sequence that is found
                before anything is stored, in a stream when it comes.
            StaleIndexError: if the store already holds vectors of another document encoder.
        """
        expected: int | None = None
        if isinstance(documents, Sequence):
            unique: dict[str, Document] = {}
            for document in documents:
                if unique.setdefault(document.id, document) != document:
                    raise _two(document)
            if not unique:
                raise _none()
            documents, expected = unique.values(), len(unique)
        self.check_fresh()
        cut, total = 0, 0
        with track(total=expected, desc="index", unit="doc", disable=not progress) as bar:
            for window in self._missing(documents, bar):
                # before the first vector: interrupted in between, the store would not know who wrote what it holds
                self.store.fingerprint = self.encoder.fingerprint
                self.store.add(window, self.embed_documents(window, bar))
                total += len(window)
                if isinstance(self.encoder, SentenceEncoder):
                    cut += self.encoder.too_long([document.text for document in window])
        if cut and isinstance(self.encoder, SentenceEncoder):
            _log.warning(
                "%d of %d documents are longer than the %d tokens that the encoder reads, and were embedded by their "
                "beginning: cut them into passages, as read_documents(..., chunk_tokens=...) does, and add those",
                cut,
                total,
                self.encoder.max_length,
            )

    def _missing(self, documents: Iterable[Document], bar: Bar) -> Iterator[list[Document]]:
        """Yield windows of the documents that the store does not hold; each must be stored before the next."""
        seen: set[str] = set()  # ids alone: what came with one lies in the window or in the store
        window: dict[str, Document] = {}
        for document in documents:
            if document.id in seen:
                if document != (window.get(document.id) or self.store.get([document.id])[0]):
                    raise _two(document)
                continue
            seen.add(document.id)
            if self._holds(document):
                bar.update()
                continue
            window[document.id] = document
            if len(window) == _WINDOW * self.batch_size:
                yield list(window.values())
                window.clear()
        if not seen:
            raise _none()
        if window:
            yield list(window.values())

    def refresh(self, *, progress: bool = True) -> int:
        """Embed again what another document encoder wrote; return how many documents that was.

        The old vectors serve until the last new one is there. Interrupted and started again, it goes on. Where others
        write to the store, documents that came meanwhile are embedded too, and so are those that came without a vector.
        """
        store, size = self.store, _WINDOW * self.batch_size
        fresh = store.fingerprint == self.encoder.fingerprint
        if not len(store) or (fresh and not isinstance(store, Fillable)):
            return 0
        with track(total=len(store), desc="refresh", unit="doc", disable=not progress or fresh) as bar:
            if isinstance(store, Fillable) and fresh:
                return self._embed(store.lacking(size), store.update_vectors, bar)
            rebuild = store.rebuild(self.encoder.fingerprint)
            total = 0
            while True:
                came = self._embed(rebuild.missing(size), rebuild.put, bar)
                total += came
                try:
                    rebuild.commit()
                except StoreError:
                    if not came:
                        raise
                else:
                    return total

    def _embed(self, windows: Iterable[list[Document]], put: Callable[[Sequence[str], Tensor], None], bar: Bar) -> int:
        total = 0
        for window in windows:
            put([document.id for document in window], self.embed_documents(window, bar))
            total += len(window)
        return total

    @property
    def temperature(self) -> float:
        """What a softmax of its scores wants to be divided by: cosines differ by little, inner products by much."""
        cosine = isinstance(self.encoder, SentenceEncoder) and self.encoder.model.similarity_fn_name == "cosine"
        return 0.05 if cosine else 1.0

    def check_fresh(self) -> None:
        """Raise `StaleIndexError` unless this encoder's document side wrote the store's vectors."""
        if self.store.fingerprint != self.encoder.fingerprint and len(self.store):
            raise StaleIndexError(
                f"the store's {len(self.store)} vectors were written by document encoder "
                f"{self.store.fingerprint or 'unknown'}, the retriever now has {self.encoder.fingerprint}: "
                "call retriever.refresh() to embed the documents again, or load the encoder that wrote them"
            )

    def embed_queries(self, queries: Sequence[str]) -> Tensor:
        """Vectors `[n, d]` of queries, without gradient or dropout."""
        with evaluating(self.network):
            return self._by_length(self.encoder.encode_queries, queries)

    def embed_documents(self, documents: Sequence[Document], bar: Bar | None = None) -> Tensor:
        """Vectors `[n, d]` of documents, without gradient or dropout; `bar` is moved on by each batch."""
        with evaluating(self.network):
            return self._by_length(self.encoder.encode_documents, [document.text for document in documents], bar)

    @property
    def network(self) -> nn.Module:
        """All that has a training mode in the encoder."""
        if isinstance(self.encoder, nn.Module):
            return self.encoder
        return nn.ModuleList(self.encoder.parts().values())

    def _by_length(
        self, encode: Callable[[Sequence[str]], Tensor], texts: Sequence[str], bar: Bar | None = None
    ) -> Tensor:
        """Encode `batch_size` texts at a time, long with long and short with short, so that little is padding."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        pieces: list[Tensor] = []
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            pieces.append(encode([texts[i] for i in batch]))
            if bar is not None:
                bar.update(len(batch))
        back = torch.tensor(order).argsort()
        return torch.cat(pieces)[back.to(pieces[0].device)]

    def _holds(self, document: Document) -> bool:
        return document.id in self.store and self.store.get([document.id])[0] == document


def _none() -> InputError:
    return InputError("there is no document to add; check the path or the query that should have found some")


def _two(document: Document) -> InputError:
    return InputError(f"two different documents have the id {document.id!r}; give each its own")
