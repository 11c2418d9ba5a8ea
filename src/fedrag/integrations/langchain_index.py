"""What LangChain has, as fedrag takes it: a vector store as an index to mirror, an embedder, a filter.

    store = mirror(InMemoryIndex(vectorstore), encoder_inside(vectorstore.embeddings))

>>> where({"floor": 3, "year": {"$gte": 2020}})["conditions"][1]
{'field': 'year', 'operator': '>=', 'value': 2020}
"""

# ruff: noqa: E402  (imports after `require`)
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.optional import require
from fedrag.rag import RAGSystem
from fedrag.types import Document, Encoder, Where

require("langchain_core", extra="langchain")

from langchain_core.documents import Document as Page
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

_COMPARISONS = {"$eq": "==", "$ne": "!=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<=", "$in": "in"}
_COMPARISONS["$nin"] = "not in"
_PAGE = 256  # documents that a store is asked for at a time


@dataclass
class InMemoryIndex:
    """An `InMemoryVectorStore`, read and written in place.

    With its new vectors it gets `embeddings`, for queries must go through the encoder that wrote them.
    """

    index: InMemoryVectorStore
    embeddings: Embeddings | None = None

    def read(self) -> Iterator[tuple[Document, Sequence[float]]]:
        """Yield every document with its vector."""
        for row in self.index.store.values():
            yield Document(row["text"], row["id"], row["metadata"]), row["vector"]

    def insert(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert or replace documents with their vectors."""
        for document, vector in zip(documents, vectors.tolist(), strict=True):
            about = {"id": document.id, "text": document.text, "metadata": dict(document.metadata)}
            self.index.store[document.id] = {**about, "vector": vector}
        self._follow()

    def update(self, documents: Sequence[Document], vectors: Tensor) -> int:
        """Set the vectors of documents that are as they were; return how many are not."""
        passed = 0
        for document, vector in zip(documents, vectors.tolist(), strict=True):
            row = self.index.store.get(document.id)
            if row is not None and row["text"] == document.text:
                self.index.store[document.id] = {**row, "vector": vector}
            else:
                passed += 1
        self._follow()
        return passed

    def remove(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        self.index.delete(ids)

    def _follow(self) -> None:
        self.index.embedding = self.embeddings or self.index.embedding


@dataclass
class IdsIndex:
    """Any vector store with `get_by_ids`, by its ids. It gives no vectors, and makes those that it is told to keep.

    Its `add_documents` must replace documents of ids that are there. Most do; FAISS refuses them.
    """

    index: VectorStore
    ids: Sequence[str]

    def read(self) -> Iterator[tuple[Document, None]]:
        """Yield every document; raise `InputError` when one of the ids is not there."""
        pages = {found.id: found for found in self.index.get_by_ids(list(self.ids))}
        for id in self.ids:
            if id not in pages:
                raise InputError(f"the vector store has no document of the id {id!r}; pass ids= that it has")
            yield Document(pages[id].page_content, id, pages[id].metadata), None

    def insert(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Have the store embed the documents, once it is known to do so with the encoder that made `vectors`."""
        self._check(documents[0], vectors[0])
        self.index.add_documents([page(document) for document in documents], ids=[d.id for d in documents])

    def update(self, documents: Sequence[Document], vectors: Tensor) -> int:
        """Have the store embed again what is as it was; return how many documents are not."""
        self._check(documents[0], vectors[0])
        passed = len(documents)
        for start in range(0, len(documents), _PAGE):
            texts = {document.id: document.text for document in documents[start : start + _PAGE]}
            there = self.index.get_by_ids(list(texts))
            found = [one for one in there if one.page_content == texts.get(one.id or "")]
            if found:
                self.index.add_documents(found, ids=[one.id for one in found])
            passed -= len(found)
        return passed

    def _check(self, document: Document, vector: Tensor) -> None:
        if self.index.embeddings is None or not same_way(
            self.index.embeddings.embed_documents([document.text])[0], vector.tolist()
        ):
            raise InputError(
                f"this {type(self.index).__name__} does not embed with the system's encoder: set its embedder to "
                "to_langchain(rag).embeddings and call rag.retriever.refresh()"
            )

    def remove(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        self.index.delete(list(ids))


def page(document: Document) -> Page:
    """Return a document as one of LangChain's, under the same id and with all metadata."""
    return Page(page_content=document.text, id=document.id, metadata=dict(document.metadata))


def where(filter: Any) -> Where | None:
    """Return fedrag's filter for one in either shape that `FedRAGRetriever` takes; for an empty one, none."""
    if not isinstance(filter, Mapping) or {"operator", "conditions"} & set(cast(Where, filter)):
        return filter  # fedrag's own shape; what is no dict, its check refuses by name
    parts: list[Where] = []
    for field, value in cast(Where, filter).items():
        if field in ("$and", "$or"):
            parts.append({"operator": field[1:], "conditions": [where(part) for part in value]})
            continue
        asked = cast(Where, value) if isinstance(value, Mapping) else {"$eq": value}
        if field.startswith("$") or not asked:
            raise InputError(
                f"unknown {field!r} in the filter; choose $and or $or"
                if asked
                else f"the filter of {field!r} compares with nothing; leave it out"
            )
        for name, wanted in asked.items():
            if name not in _COMPARISONS:
                raise InputError(
                    f"unknown {name!r} in the filter of {field!r}; choose one of {', '.join(_COMPARISONS)}"
                )
            parts.append({"field": field, "operator": _COMPARISONS[name], "value": wanted})
    return {"operator": "AND", "conditions": parts} if parts else None


def encoder_inside(embedder: Any) -> Encoder:
    """Return the encoder over the sentence-transformers model that an embedder holds; else raise `InputError`."""
    if isinstance(system := getattr(embedder, "rag", None), RAGSystem):
        return system.dense.encoder
    places = [getattr(embedder, name, None) or {} for name in ("__dict__", "__pydantic_private__")]
    held = [value for place in places for value in place.values()]
    model = next((value for value in held if isinstance(value, SentenceTransformer)), None)
    if model is None:
        raise InputError(
            f"the embedder is a {type(embedder).__name__}, in which no sentence-transformers model was found to train: "
            "pass encoder=SentenceEncoder(...)"
        )
    encoder = SentenceEncoder(model)
    with torch.no_grad():
        mine = encoder.encode_queries(["Which one ?"])[0].tolist()
    if not same_way(embedder.embed_query("Which one ?"), mine):
        raise InputError(
            f"the {type(embedder).__name__} embeds a query otherwise than its model does, with a prompt of its own "
            "perhaps: put that into model.prompts['query'], or pass encoder=SentenceEncoder(...)"
        )
    return encoder


def same_way(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two vectors have the same direction, up to the rounding of half precision."""
    if len(one) != len(other):
        return False
    pair = torch.nn.functional.normalize(torch.tensor([list(one), list(other)]), dim=-1)  # [2, d]
    return bool((pair[0] - pair[1]).norm() <= 2e-3)


def refuse(kwargs: Mapping[str, Any]) -> None:
    """Raise `InputError` for settings that nothing here would mind: dropped in silence they mislead."""
    if kwargs:
        raise InputError(f"unknown settings {', '.join(sorted(kwargs))}: leave them out")
