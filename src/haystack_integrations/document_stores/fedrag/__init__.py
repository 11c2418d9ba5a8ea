"""The knowledge store of a RAG system as a Haystack document store.

What is written is embedded by the system's own encoder, so that a document embedder before the writer is not needed,
and an embedding that comes along is not used: the vectors in the store are always this encoder's.

    store = FedRAGDocumentStore(rag)
    store.write_documents([Document(content="Sailors on Ramon obey Tilu .")])
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy

from fedrag.errors import InputError
from fedrag.filters import compile_filter
from fedrag.rag import RAGSystem
from haystack_integrations.common.fedrag import Source, from_haystack_document, to_haystack_document, where

__all__ = ["FedRAGDocumentStore"]


class FedRAGDocumentStore:
    """Documents of a system with a dense retriever, over any of its knowledge stores.

    `system` is the folder of a saved system, or a live one. What is written to a saved one stays in memory, where all
    components of that folder see it, until `store.source.rag.save(folder)`.
    """

    def __init__(self, system: str | Path | RAGSystem) -> None:
        self.source = Source(system)

    def to_dict(self) -> dict[str, Any]:
        """Return what YAML holds. Raises `InputError` for a live system."""
        return default_to_dict(self, system=self.source.path)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FedRAGDocumentStore:
        """Return the store that `to_dict` wrote."""
        return default_from_dict(cls, data)

    def count_documents(self) -> int:
        """Return the number of documents."""
        return len(self.source.rag.dense.store)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the documents that match, without their vectors. Raises Haystack's `FilterError`."""
        ours = where(filters)
        keep = None if ours is None else compile_filter(ours)
        documents = self.source.rag.dense.store.documents()
        return [to_haystack_document(d) for d in documents if keep is None or keep(d.metadata)]

    def write_documents(self, documents: Sequence[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Embed and store documents; return how many. The policy `NONE` is `FAIL`, and then nothing is written.

        Raises:
            ValueError: unless it is a list of Haystack's documents.
            DuplicateDocumentError: if the policy is to fail, and an id is there or comes twice.
            StaleIndexError: if the store's vectors are another encoder's.
        """
        given = cast(Sequence[object], documents)  # whatever a caller without types passes
        if isinstance(documents, str) or not all(isinstance(document, Document) for document in given):
            raise InputError("write_documents() takes a list of haystack.Document")
        dense = self.source.rag.dense
        fresh: dict[str, Document] = {}
        for document in documents:
            if document.id in fresh or document.id in dense.store:
                if policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
                    raise DuplicateDocumentError(
                        f"the id {document.id!r} is there already; write with OVERWRITE or SKIP"
                    )
                if policy == DuplicatePolicy.SKIP:
                    continue
            fresh[document.id] = document
        if fresh:
            dense.add([from_haystack_document(document) for document in fresh.values()], progress=False)
        return len(fresh)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents of these ids; an id that is not there is passed over."""
        self.source.rag.dense.store.remove(document_ids)

    async def count_documents_async(self) -> int:
        """`count_documents`, off the event loop."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """`filter_documents`, off the event loop."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: Sequence[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """`write_documents`, off the event loop."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """`delete_documents`, off the event loop."""
        await asyncio.to_thread(self.delete_documents, document_ids)
