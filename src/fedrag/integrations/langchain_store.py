"""LangChain's retriever, embeddings and vector store over a RAG system.

Every class of LangChain here is made over a live system, `FedRAGRetriever(rag=rag)`, or over the folder of a saved one,
`FedRAGRetriever(path="my-rag")`. What knows its folder is written and read by LangChain's `dumps` and `loads`.

    retriever.invoke("Which key has clerk 3 ?", k=2, filter={"floor": 3})
    loads(dumps(retriever), allowed_objects=[FedRAGRetriever], valid_namespaces=["fedrag"])
"""

# ruff: noqa: E402  (imports after `require`)
from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from pydantic import ConfigDict, Field, model_validator

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.integrations.langchain_index import encoder_inside, page, refuse, where
from fedrag.optional import require
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document, Hit

require("langchain_core", extra="langchain")

from langchain_core.documents import Document as Page
from langchain_core.embeddings import Embeddings
from langchain_core.load.serializable import Serializable, SerializedConstructor, SerializedNotImplemented
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance


class Saved(Serializable):
    """What LangChain writes down of a system: the folder that `rag.save(path)` wrote, from which it is read again.

    Without `path` it is over a live system, which LangChain's `dumps` marks as "not implemented".
    """

    rag: RAGSystem = Field(exclude=True, repr=False)
    path: str = ""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _loaded(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("rag") is None and not values.get("path"):
            raise InputError(
                f"{cls.__name__} needs rag=, a RAGSystem, or path=, the folder of a saved one; got neither"
            )
        return values if values.get("rag") is not None else {**values, "rag": RAGSystem.load(values["path"])}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Tell LangChain's `dumps` that this class can be written."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return what `dumps` writes: the class and its settings, never weights or documents."""
        return super().to_json() if self.path else self.to_json_not_implemented()


class FedRAGRetriever(Saved, BaseRetriever):
    """The system's retriever, of any kind. `k` and `filter` stand here, or come with a call.

    A filter is one of fedrag's (see `fedrag.filters`), or in the shape that many stores of LangChain take:
    `{"floor": 3}`, `{"year": {"$gte": 2020}}`, `{"$or": [...]}`.
    """

    k: int | None = None
    filter: dict[str, Any] | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any, k: int | None = None, filter: Mapping[str, Any] | None = None
    ) -> list[Page]:
        asked = where(self.filter if filter is None else filter)
        hits = self.rag.retrieve(query, k=self.k if k is None else k, where=asked)
        return [page(hit.document) for hit in hits]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any, **settings: Any) -> list[Page]:
        # LangChain's own would drop the settings of the call
        sync = run_manager.get_sync()
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=sync, **settings)


class FedRAGEmbeddings(Saved, Embeddings):
    """The system's encoder: queries through its query side, documents through its document side."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text."""
        return self.rag.dense.embed_documents([Document(text) for text in texts]).tolist() if texts else []

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query. Raises `StaleIndexError` where the store's vectors are another encoder's."""
        self.rag.dense.check_fresh()
        return self.rag.dense.embed_queries([text])[0].tolist()


class FedRAGVectorStore(VectorStore):
    """The system's knowledge store, with its encoder. Filters are those of `FedRAGRetriever`, scores inner products.

    `k` is the system's `top_k` unless a call says otherwise. Raises `InputError` for a system that is not dense.
    """

    def __init__(self, rag: RAGSystem) -> None:
        self.rag = rag
        self._dense = rag.dense

    @property
    def embeddings(self) -> FedRAGEmbeddings:
        """The system's encoder."""
        return FedRAGEmbeddings(rag=self.rag)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and store texts under the given ids or new ones, which are returned; what has an id is replaced."""
        refuse(kwargs)
        texts = list(texts)
        about = metadatas or [{} for _ in texts]
        names = [id or str(uuid.uuid4()) for id in (ids or [None] * len(texts))]
        if not len(texts) == len(about) == len(names):
            raise InputError(f"got {len(texts)} texts, {len(about)} metadatas and {len(names)} ids: give one per text")
        documents = [Document(text, id, data) for text, id, data in zip(texts, names, about, strict=True)]
        if documents:
            self._dense.add(documents, progress=False)
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete the documents of these ids, those that are there; all documents for `None`."""
        refuse(kwargs)
        store = self._dense.store
        store.remove([document.id for document in store.documents()] if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Page]:
        """Return the documents of these ids, in order; unknown ids are left out."""
        return [page(document) for document in self._dense.store.get([id for id in ids if id in self._dense.store])]

    def similarity_search(self, query: str, k: int | None = None, **kwargs: Any) -> list[Page]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the best documents for a query, best first."""
        return [found for found, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, query: str, k: int | None = None, filter: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Page, float]]:
        """Return the best documents for a query with their scores; higher is better."""
        refuse(kwargs)
        return [(page(hit.document), hit.score) for hit in self.rag.retrieve(query, k=k, where=where(filter))]

    def similarity_search_by_vector(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, embedding: list[float], k: int | None = None, filter: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Page]:
        """Return the best documents for a query's vector, best first."""
        refuse(kwargs)
        return [page(hit.document) for hit in self._near(embedding, self.rag.top_k if k is None else k, filter)]

    async def asimilarity_search(self, query: str, k: int | None = None, **kwargs: Any) -> list[Page]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`similarity_search`, off the event loop."""
        return await run_in_executor(None, self.similarity_search, query, k, **kwargs)

    async def asimilarity_search_by_vector(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, embedding: list[float], k: int | None = None, **kwargs: Any
    ) -> list[Page]:
        """`similarity_search_by_vector`, off the event loop."""
        return await run_in_executor(None, self.similarity_search_by_vector, embedding, k, **kwargs)

    def max_marginal_relevance_search(self, query: str, *args: Any, **kwargs: Any) -> list[Page]:
        """Return documents that are near the query and far from each other; see `..._by_vector`."""
        return self.max_marginal_relevance_search_by_vector(self.embeddings.embed_query(query), *args, **kwargs)

    def max_marginal_relevance_search_by_vector(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        embedding: list[float],
        k: int | None = None,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Page]:
        """Return `k` of the `fetch_k` best, chosen one by one; `lambda_mult` 1 minds nearness, 0 variety."""
        refuse(kwargs)
        k = self.rag.top_k if k is None else k
        hits = self._near(embedding, max(k, fetch_k), filter)
        vectors = self._dense.store.vectors([hit.document.id for hit in hits]).cpu().numpy()
        chosen = maximal_marginal_relevance(np.array(embedding, dtype=np.float32), list(vectors), lambda_mult, k)
        return [page(hits[place].document) for place in chosen]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> FedRAGVectorStore:
        """Return a new store in memory, with the encoder inside `embedding`. Raises `InputError` if there is none."""
        store = cls(RAGSystem(retriever=DenseRetriever(cast(Any, encoder_inside(embedding)), MemoryStore())))
        store.add_texts(texts, metadatas, ids=ids, **kwargs)
        return store

    def _near(self, vector: list[float], k: int, filter: Mapping[str, Any] | None) -> list[Hit]:
        self._dense.check_fresh()
        return self._dense.store.search(torch.tensor([vector]), k, where(filter))[0] if k else []

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        encoder: Any = self._dense.encoder
        if isinstance(encoder, SentenceEncoder) and encoder.model.similarity_fn_name == "cosine":
            return lambda score: (1 + score) / 2
        raise InputError(
            "relevance in [0, 1] needs an encoder that compares by cosine; use similarity_search_with_score"
        )
