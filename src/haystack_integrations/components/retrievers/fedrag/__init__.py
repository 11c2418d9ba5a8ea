"""A Haystack retriever that is the retriever of a RAG system, whatever kind it is.

FedRAGRetriever("my-rag").run("Who is the captain of Ramon ?", top_k=3)["documents"]
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from haystack import Document, component, default_to_dict

from fedrag.rag import RAGSystem
from haystack_integrations.common.fedrag import Source, to_haystack_document, where

__all__ = ["FedRAGRetriever"]


@component
class FedRAGRetriever:
    """Find documents for a query.

    Args:
        system: the folder of a saved system, or a live one.
        filters: the metadata filter of calls that bring none.
        top_k: documents per query in calls that do not say; `None` takes the system's.
    """

    def __init__(
        self, system: str | Path | RAGSystem, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> None:
        self.source = Source(system)
        self.filters = filters
        self.top_k = top_k

    def warm_up(self) -> None:
        """Open the system."""
        _ = self.source.rag

    def to_dict(self) -> dict[str, Any]:
        """Return what YAML holds. Raises `InputError` for a live system."""
        return default_to_dict(self, system=self.source.path, filters=self.filters, top_k=self.top_k)

    @component.output_types(documents=list[Document])
    def run(self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None) -> dict[str, Any]:
        """Return the documents with their scores, best first. Raises Haystack's `FilterError`."""
        k = self.top_k if top_k is None else top_k
        hits = self.source.rag.retrieve(query, k=k, where=where(filters or self.filters))
        return {"documents": [to_haystack_document(hit.document, score=hit.score) for hit in hits]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, Any]:
        """`run`, off the event loop."""
        return await asyncio.to_thread(self.run, query, filters, top_k)
