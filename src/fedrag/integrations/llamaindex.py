"""LlamaIndex: take an index that is there, tune the system over it, and give back an index of LlamaIndex's own kind.

    rag = from_llamaindex(index)                       # its nodes, its vectors, its sentence-transformers model
    RAGTrainer(Contrastive(rag), train_dataset=examples).train()
    index.as_retriever(similarity_top_k=5)             # the same index, with the tuned model and its vectors

    index = to_llamaindex(RAGSystem.load("my-rag"))    # a VectorStoreIndex: insert, retrieve, query, chat
    index.as_query_engine(streaming=True).query("How do I rotate the key?")

The query engine answers with the system's prompt, as `rag.query` does, so what was tuned is what is asked. With an
`llm`, a template or a response mode of one's own it is LlamaIndex's engine, unchanged.

Relations: `fedrag.integrations.llamaindex_store` holds the nodes, `fedrag.integrations.llamaindex_model` the models.
"""

# ruff: noqa: E402  (imports after `require`)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from sentence_transformers import SentenceTransformer

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.integrations.llamaindex_model import Embedding, LanguageModel
from fedrag.integrations.llamaindex_store import IndexOutside, VectorStore, to_document
from fedrag.integrations.mirror import mirror
from fedrag.optional import require
from fedrag.prompts import Prompt
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.types import Document, Encoder, Generator

require("llama_index.core", extra="llamaindex")

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.llms.llm import (
    LLM,
    astream_completion_response_to_tokens,
    stream_completion_response_to_tokens,
)
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE

_THEIRS = {  # whoever sets one of these wants LlamaIndex's way of answering
    "response_synthesizer",
    "response_mode",
    "text_qa_template",
    "refine_template",
    "summary_template",
    "simple_template",
    "output_cls",
    "multimodal",
}


def from_llamaindex(
    index: VectorStoreIndex,
    *,
    encoder: Encoder | None = None,
    generator: Generator | None = None,
    prompt: Prompt | None = None,
    top_k: int = 5,
) -> RAGSystem:
    """Return a system over an index: searched and tuned here, written there by every change and refresh.

    The index embeds with the system's encoder from now on, so that its vectors and its queries stay of one kind. What
    is inserted into the index itself afterwards is not seen here: take it again, or insert with `rag.add`.

    Args:
        index: over the default store, or over any that lists its nodes (`get_nodes`).
        encoder: by default the sentence-transformers model inside the index's embedding model.
        generator, prompt, top_k: as for `RAGSystem`.

    LlamaIndex's default store compares by cosine: an encoder that compares by the plain inner product ranks otherwise
    there than here.

    Raises:
        InputError: if no encoder is given and none is inside, the store cannot list its nodes, or the index is one that
            `to_llamaindex` made.
    """
    if isinstance(index, SystemIndex):
        raise InputError("this index is a view of a system: take index.rag")
    theirs = cast(Any, index)  # LlamaIndex has no public name for an index's embedding model
    encoder = encoder or _inside(theirs._embed_model)
    retriever = DenseRetriever(cast(SentenceEncoder, encoder), mirror(IndexOutside(index), encoder))
    rag = RAGSystem(retriever=retriever, generator=generator, prompt=prompt, top_k=top_k)
    theirs._embed_model = Embedding(rag, callback_manager=theirs._callback_manager)
    return rag


def to_llamaindex(rag: RAGSystem, *, path: str | Path | None = None) -> SystemIndex:
    """Return the system as an index of LlamaIndex: whatever is done with one shows in the other.

    `path` is where the system is saved, if it is: the name that the embedding's `to_dict` passes on.
    """
    named = {} if path is None else {"model_name": str(path)}
    storage = StorageContext.from_defaults(vector_store=VectorStore(rag))
    return SystemIndex(nodes=[], storage_context=storage, embed_model=Embedding(rag, **named))


class SystemIndex(VectorStoreIndex):
    """A `VectorStoreIndex` whose store, embedding model and default language model are those of a RAG system."""

    @property
    def rag(self) -> RAGSystem:
        """The system."""
        return cast(VectorStore, self.vector_store).client

    def as_retriever(self, **kwargs: Any) -> BaseRetriever:
        """Return a retriever; `similarity_top_k` is the system's `top_k` by default, `filters` what to choose among."""
        # not by the base's: it passes node ids, which would shut out all text once a node of another kind is inserted
        settings: dict[str, Any] = {
            "similarity_top_k": self.rag.top_k,
            "callback_manager": self._callback_manager,
            "object_map": self._object_map,
        }
        return VectorIndexRetriever(self, **(settings | kwargs))

    def as_query_engine(self, llm: Any = None, **kwargs: Any) -> BaseQueryEngine:
        """Return a query engine: without an `llm` or template of one's own, it answers as `rag.query` does.

        Where no node is found it says so, in LlamaIndex's words, and does not ask the generator alone.

        Raises `InputError` for a system with the ensemble reader, which LlamaIndex has no engine for.
        """
        if llm is None and self.rag.generator is not None:
            llm = LanguageModel(self.rag.generator)
            if not _THEIRS & kwargs.keys():
                kwargs["response_synthesizer"] = _Reader(self.rag, llm, streaming=kwargs.get("streaming", False))
        return super().as_query_engine(llm, **kwargs)

    def as_chat_engine(self, chat_mode: ChatMode = ChatMode.BEST, llm: Any = None, **kwargs: Any) -> BaseChatEngine:
        """Return a chat engine, with the system's generator unless `llm` says otherwise."""
        if llm is None and self.rag.generator is not None:
            llm = LanguageModel(self.rag.generator)
        return super().as_chat_engine(chat_mode, llm, **kwargs)

    def _get_node_with_embedding(self, nodes: Sequence[Any], show_progress: bool = False) -> list[Any]:
        return list(nodes)  # the store embeds

    async def _aget_node_with_embedding(self, nodes: Sequence[Any], show_progress: bool = False) -> list[Any]:
        return list(nodes)


class _Reader(BaseSynthesizer):
    """Answers from nodes with the prompt of the system, documents shortened to fit."""

    def __init__(self, rag: RAGSystem, llm: LLM, *, streaming: bool) -> None:
        if rag.reader != "stuff":
            raise InputError(f"reader={rag.reader!r} has no engine in LlamaIndex: take reader='stuff', or rag.query")
        super().__init__(llm=llm, streaming=streaming)
        self._rag = rag

    def synthesize(
        self, query: QueryType, nodes: list[NodeWithScore], *args: Any, **response_kwargs: Any
    ) -> RESPONSE_TYPE:
        """Answer a query from nodes."""
        return super().synthesize(query, nodes, *args, documents=_documents(nodes), **response_kwargs)

    async def asynthesize(
        self, query: QueryType, nodes: list[NodeWithScore], *args: Any, **response_kwargs: Any
    ) -> RESPONSE_TYPE:
        """`synthesize`, off the event loop."""
        return await super().asynthesize(query, nodes, *args, documents=_documents(nodes), **response_kwargs)

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], *, documents: list[Document], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """Return the answer; the documents stand for the chunks, which lack their metadata."""
        prompt = self._rag.prompt_for(query_str, documents)
        if self._streaming:
            return stream_completion_response_to_tokens(self._llm.stream_complete(prompt, formatted=True))
        return self._llm.complete(prompt, formatted=True).text

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], *, documents: list[Document], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response`, off the event loop."""
        prompt = self._rag.prompt_for(query_str, documents)
        if self._streaming:
            pieces = await self._llm.astream_complete(prompt, formatted=True)
            return await astream_completion_response_to_tokens(pieces)
        return (await self._llm.acomplete(prompt, formatted=True)).text

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts_dict: dict[str, Any]) -> None:
        if prompts_dict:
            raise InputError("the prompt is the system's: set rag.prompt, or pass a text_qa_template to the engine")


def _documents(nodes: list[NodeWithScore]) -> list[Document]:
    return [to_document(found.node) for found in nodes]


def _inside(embedding: Any) -> Encoder:
    """The encoder of our own embedding model, or the sentence-transformers model of another's."""
    if isinstance(embedding, Embedding):
        return embedding.dense.encoder
    for name in ("_model", "model", "_client"):
        model = getattr(embedding, name, None)
        if isinstance(model, SentenceTransformer):
            # LlamaIndex's Hugging Face embedding calls the documents' prompt "text"
            if text := model.prompts.get("text"):
                model.prompts["document"] = text
            return SentenceEncoder(model)
    raise InputError(
        f"there is no sentence-transformers model in the index's {type(embedding).__name__}: pass the encoder to tune, "
        "as in from_llamaindex(index, encoder=SentenceEncoder('all-MiniLM-L6-v2'))"
    )
