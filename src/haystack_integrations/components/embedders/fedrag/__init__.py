"""Haystack embedders that are the encoder of a RAG system: its query side for texts, its document side for documents.

FedRAGTextEmbedder("my-rag").run("Who is the captain of Ramon ?")["embedding"]
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from haystack import Document, component, default_to_dict

from fedrag.rag import RAGSystem
from fedrag.types import Document as Passage
from haystack_integrations.common.fedrag import Source, embedded_text

__all__ = ["FedRAGDocumentEmbedder", "FedRAGTextEmbedder"]


@component
class FedRAGTextEmbedder:
    """Embed a query. `system` is the folder of a saved system or of a saved encoder, or a live system."""

    def __init__(self, system: str | Path | RAGSystem) -> None:
        self.source = Source(system)

    def warm_up(self) -> None:
        """Open the system."""
        _ = self.source.rag

    def to_dict(self) -> dict[str, Any]:
        """Return what YAML holds. Raises `InputError` for a live system."""
        return default_to_dict(self, system=self.source.path)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Return the vector of a query."""
        return {"embedding": self.source.rag.dense.embed_queries([text])[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run`, off the event loop."""
        return await asyncio.to_thread(self.run, text)


@component
class FedRAGDocumentEmbedder:
    """Embed documents, in batches.

    Args:
        system: the folder of a saved system or of a saved encoder, or a live system.
        meta_fields_to_embed: fields of `meta` whose values come before the content.
        embedding_separator: what stands between those and the content.
        prefix: what comes before it all.
        suffix: what comes after it all.
    """

    def __init__(
        self,
        system: str | Path | RAGSystem,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        prefix: str = "",
        suffix: str = "",
    ) -> None:
        self.source = Source(system)
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.prefix = prefix
        self.suffix = suffix

    def warm_up(self) -> None:
        """Open the system."""
        _ = self.source.rag

    def to_dict(self) -> dict[str, Any]:
        """Return what YAML holds. Raises `InputError` for a live system."""
        names = ("meta_fields_to_embed", "embedding_separator", "prefix", "suffix")
        return default_to_dict(self, system=self.source.path, **{name: getattr(self, name) for name in names})

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return the documents with their vectors."""
        if not documents:
            return {"documents": []}
        passages = [Passage(embedded_text(self, document), document.id) for document in documents]
        vectors = self.source.rag.dense.embed_documents(passages).tolist()
        return {"documents": [replace(d, embedding=vector) for d, vector in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run`, off the event loop."""
        return await asyncio.to_thread(self.run, documents)
