"""What a saved system consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from fedrag.prompts import Prompt
from fedrag.retrievers.reranked import Reranker
from fedrag.types import Encoder, Generator, KnowledgeStore, Retriever


class Settings(TypedDict):
    """What a system is beside its parts, as `RAGSystem` takes it. Without a `temperature` it takes its encoder's."""

    top_k: int
    prompt: Prompt
    reader: Literal["stuff", "ensemble"]
    temperature: float | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a system is made of; the retriever is put together from encoder, store and reranker."""

    encoder: Encoder
    store: KnowledgeStore
    generator: Generator | None
    retriever: Retriever
    reranker: Reranker | None = None
