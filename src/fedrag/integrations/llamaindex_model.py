"""The encoder and the generator of a RAG system as LlamaIndex's embedding model and language model.

LlamaIndex's own base classes emit its events, keep its caches and make its batches; what is here is only the work.
Coroutines run off the event loop.
"""

# ruff: noqa: E402  (imports after `require`)
# LlamaIndex types its decorators as Callable, no more:
# pyright: reportUntypedFunctionDecorator=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from fedrag import durable, types
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.integrations.answering import Asked, asked, chats, pieces
from fedrag.optional import require
from fedrag.prompts import Tokens
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document

require("llama_index.core", extra="llamaindex")

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata, MessageRole
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

T = TypeVar("T")


class Embedding(BaseEmbedding):
    """The encoder of a RAG system.

    `to_dict` holds no weights but `model_name`: the folder where `RAGSystem.save` wrote the system, or anything that
    `SentenceEncoder` takes. From that name `from_dict` reads the encoder again. A query's embedding raises
    `StaleIndexError` while the system's store has vectors of another encoder.
    """

    _rag: RAGSystem = PrivateAttr()

    def __init__(self, rag: RAGSystem | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._rag = rag or RAGSystem(retriever=DenseRetriever(_encoder(self.model_name), MemoryStore()))

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex gives it in what it writes."""
        return "FedRAGEmbedding"

    @property
    def dense(self) -> DenseRetriever:
        """The retriever that embeds. Raises `InputError` for a system that has another kind."""
        return self._rag.dense

    def _get_query_embedding(self, query: str) -> list[float]:
        self.dense.check_fresh()
        return self.dense.embed_queries([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.dense.embed_documents([Document(text) for text in texts]).tolist()

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class LanguageModel(CustomLLM):
    """A generator. Decoding is greedy; a call takes `max_tokens` and `stop`, and refuses other settings.

    A text to complete is one message of a user, as fedrag trains on it. Several messages are written by the tokenizer's
    chat template, in which what they say can be no control token; without a template, as LlamaIndex writes a dialogue.
    """

    _generator: types.Generator = PrivateAttr()

    def __init__(self, generator: types.Generator, **settings: Any) -> None:
        super().__init__(**settings)
        self._generator = generator

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex gives it in what it writes."""
        return "FedRAGLanguageModel"

    @property
    def metadata(self) -> LLMMetadata:
        """The real context window and length of an answer, where the generator knows them."""
        config = getattr(getattr(self._generator, "model", None), "config", None)
        name = getattr(config, "name_or_path", "") or type(self._generator).__name__
        known: dict[str, Any] = {}
        if isinstance(self._generator, Tokens):
            known = {"context_window": self._generator.max_length, "num_output": self._generator.max_new_tokens}
        return LLMMetadata(model_name=name, is_chat_model=chats(self._generator), **known)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the continuation of a prompt."""
        *_, last = self._completion(prompt, formatted, kwargs)
        return CompletionResponse(text=last.text)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        """Return a generator over the continuation as it grows."""
        return self._completion(prompt, formatted, kwargs)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to messages."""
        *_, last = self._answer(messages, kwargs)
        return ChatResponse(message=last.message)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """Return a generator over the answer as it grows."""
        return self._answer(messages, kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, off the event loop."""
        return await asyncio.to_thread(self.complete, prompt, formatted=formatted, **kwargs)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncGenerator[CompletionResponse, None]:
        """`stream_complete`, off the event loop."""
        return _steps(lambda: self.stream_complete(prompt, formatted=formatted, **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, off the event loop."""
        return await asyncio.to_thread(self.chat, messages, **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """`stream_chat`, off the event loop."""
        return _steps(lambda: self.stream_chat(messages, **kwargs))

    def _completion(
        self, prompt: str, formatted: bool, settings: dict[str, Any]
    ) -> Generator[CompletionResponse, None, None]:
        assert self.completion_to_prompt is not None  # LlamaIndex fills it in
        text = ""
        for piece in self._pieces(prompt if formatted else self.completion_to_prompt(prompt), **settings):
            text += piece
            yield CompletionResponse(text=text, delta=piece)

    def _answer(self, messages: Sequence[ChatMessage], settings: dict[str, Any]) -> Generator[ChatResponse, None, None]:
        text = ""
        for piece in self._pieces(self._prompt(messages), **settings):
            text += piece
            yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)

    def _prompt(self, messages: Sequence[ChatMessage]) -> Asked:
        written = cast(Callable[[Sequence[ChatMessage]], str], self.messages_to_prompt)  # LlamaIndex fills it in
        read = [{"role": message.role.value, "content": message.content or ""} for message in messages]
        return asked(self._generator, read, lambda: written(messages))

    def _pieces(
        self,
        prompt: Asked,
        *,
        max_tokens: int | None = None,
        stop: list[str] | None = None,
        **others: Any,
    ) -> Iterator[str]:
        """Yield the pieces of the answer, at least one. The settings are those of a call, under LlamaIndex's names."""
        if others:
            raise InputError(f"got the settings {sorted(others)}: a call takes max_tokens and stop, decoding is greedy")
        found = pieces(self._generator, prompt, max_new_tokens=max_tokens, stop=stop)
        yield next(found, "")  # so that an empty answer is an answer too
        yield from found


async def _steps(start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
    """Iterate off the event loop."""
    items = await asyncio.to_thread(start)
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item


def _encoder(name: str) -> SentenceEncoder:
    if name == "unknown":
        raise InputError(
            "the embedding has no model_name to read an encoder from: save the system and pass its folder, as in "
            "to_llamaindex(rag, path='my-rag')"
        )
    saved = durable.exists(Path(name))
    return SentenceEncoder.load(durable.current(Path(name)) / "encoder") if saved else SentenceEncoder(name)
