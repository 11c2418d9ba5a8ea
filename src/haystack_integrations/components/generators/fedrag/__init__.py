"""The generator of a RAG system as a Haystack chat generator: streaming, sync and async.

FedRAGChatGenerator("my-rag").run([ChatMessage.from_user(prompt)])["replies"][0].text
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import (
    ChatMessage,
    ComponentInfo,
    StreamingCallbackT,
    StreamingChunk,
    select_streaming_callback,
)
from haystack.utils import deserialize_callable, serialize_callable

from fedrag.errors import InputError
from fedrag.integrations.answering import Asked, asked, pieces
from fedrag.rag import RAGSystem
from fedrag.types import Generator
from haystack_integrations.common.fedrag import Source

__all__ = ["FedRAGChatGenerator"]

_SETTINGS = {"max_new_tokens", "stop"}


@component
class FedRAGChatGenerator:
    """Answer messages.

    A lone user message is the prompt, with whatever frame the generator puts around one. Several messages go into the
    generator's chat template; without one they become a prompt that names the roles.

    Args:
        system: the folder of a saved system, or a live one.
        streaming_callback: what gets the pieces in calls that bring no callback.
        generation_kwargs: `max_new_tokens` and `stop`, where a call does not say.
    """

    def __init__(
        self,
        system: str | Path | RAGSystem,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.source = Source(system)
        self.streaming_callback = streaming_callback
        self.generation_kwargs = generation_kwargs or {}

    def warm_up(self) -> None:
        """Open the system."""
        _ = self.source.rag

    def to_dict(self) -> dict[str, Any]:
        """Return what YAML holds. Raises `InputError` for a live system."""
        callback = self.streaming_callback and serialize_callable(self.streaming_callback)
        settings = {"streaming_callback": callback, "generation_kwargs": self.generation_kwargs}
        return default_to_dict(self, system=self.source.path, **settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FedRAGChatGenerator:
        """Return the component that `to_dict` wrote."""
        settings = data["init_parameters"]
        if callback := settings.get("streaming_callback"):
            settings["streaming_callback"] = deserialize_callable(callback)
        return default_from_dict(cls, data)

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage],
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return one reply. Raises `InputError` for settings that the generator does not take."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        return self._reply(messages, callback, generation_kwargs)

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage],
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`run`, off the event loop; the callback is called on it."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        loop = asyncio.get_running_loop()

        async def deliver(chunk: StreamingChunk) -> None:
            sent: Any = callback(chunk) if callback else None
            if inspect.isawaitable(sent):
                await sent

        def send(chunk: StreamingChunk) -> None:
            asyncio.run_coroutine_threadsafe(deliver(chunk), loop).result()

        return await asyncio.to_thread(self._reply, messages, send if callback else None, generation_kwargs)

    def _reply(
        self,
        messages: Sequence[ChatMessage],
        send: Callable[[StreamingChunk], None] | None,
        generation_kwargs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        settings = {**self.generation_kwargs, **(generation_kwargs or {})}
        if unknown := settings.keys() - _SETTINGS:
            raise InputError(f"generation_kwargs takes {sorted(_SETTINGS)}, got also {sorted(unknown)}")
        generator = self.source.rag.generator
        if generator is None:
            raise InputError("this system has no generator, so it cannot answer; give it one")
        text = ""
        for piece in pieces(generator, _asked(generator, messages), **settings):
            if send is not None:
                origin = ComponentInfo.from_component(self)
                send(StreamingChunk(content=piece, component_info=origin, index=0, start=not text))
            text += piece
        return {"replies": [ChatMessage.from_assistant(text)]}


def _asked(generator: Generator, messages: Sequence[ChatMessage]) -> Asked:
    if not messages:
        raise InputError("there is no message to answer; give at least one")
    read: list[dict[str, str]] = []
    for message in messages:
        if not message.texts or len(message.texts) != len(message):
            raise InputError(f"the {message.role.value} message holds more than text, which this model cannot read")
        read.append({"role": message.role.value, "content": "\n".join(message.texts)})
    lines = [f"{message['role']}: {message['content']}" for message in read]
    return asked(generator, read, lambda: "\n".join([*lines, "assistant:"]))
