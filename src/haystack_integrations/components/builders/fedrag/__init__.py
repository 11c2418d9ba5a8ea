"""The prompt of a RAG system as a Haystack component: what the generator was trained on is what it is asked.

FedRAGPromptBuilder("my-rag").run("Who is the captain of Ramon ?", documents)["messages"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from haystack import Document, component, default_to_dict
from haystack.dataclasses import ChatMessage

from fedrag.errors import ConfigError
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.nested import find
from fedrag.types import Document as Passage
from haystack_integrations.common.fedrag import CONTENT, Source, from_haystack_document

__all__ = ["FedRAGPromptBuilder"]


@component
class FedRAGPromptBuilder:
    """Write query and documents as one message, the documents shortened to the generator's budget.

    `system` is the folder of a saved system, or a live one; its reader must be "stuff", for there is one prompt.
    """

    def __init__(self, system: str | Path | RAGSystem) -> None:
        self.source = Source(system)

    def warm_up(self) -> None:
        """Open the system."""
        _ = self.source.rag

    def to_dict(self) -> dict[str, Any]:
        """Return what YAML holds. Raises `InputError` for a live system."""
        return default_to_dict(self, system=self.source.path)

    @component.output_types(messages=list[ChatMessage])
    def run(self, query: str, documents: list[Document]) -> dict[str, Any]:
        """Return the prompt. Raises `ConfigError` for another reader than "stuff"."""
        rag = self.source.rag
        if rag.reader != "stuff":
            raise ConfigError(f"the system's reader is {rag.reader!r}, one prompt per document: ask it by rag.query()")
        prompt = rag.prompt_for(query, [_passage(rag, document) for document in documents])
        return {"messages": [ChatMessage.from_user(prompt)]}


def _passage(rag: RAGSystem, document: Document) -> Passage:
    """The document as the system knows it: with metadata in the text that it was trained on, where that is so."""
    passage = from_haystack_document(document)
    if (dense := find(rag.retriever, DenseRetriever)) is not None and passage.id in dense.store:
        (stored,) = dense.store.get([passage.id])
        if stored.metadata.get(CONTENT) == passage.text:
            return stored
    return passage
