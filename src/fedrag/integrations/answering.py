"""How a generator answers what other libraries ask: a prompt, or a conversation of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

from fedrag.errors import FedRAGError
from fedrag.generators.causal import CausalLM
from fedrag.generators.tokens import Message
from fedrag.types import Generator, Streamer

Asked = str | list[Message]
"""A prompt, or messages for a generator that holds conversations."""


class RemoteError(FedRAGError):
    """A model behind an address did not answer, or not with a text; names model, host, status and the next step."""


@runtime_checkable
class Chatter(Protocol):
    """A generator that answers conversations; what their messages say must not become a control token."""

    def chat(
        self, messages: Sequence[Message], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Return an iterator over the pieces of the answer."""
        ...


def asked(generator: Generator, messages: Sequence[Message], written: Callable[[], str]) -> Asked:
    """Return what the generator goes on from.

    A lone message of the user is a prompt, as fedrag trains on it. More of them are for a conversation, in which what
    they say can be no control token; a generator that holds none gets a text, as the library that asks writes it.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return list(messages) if chats(generator) else written()


def chats(generator: Generator) -> bool:
    """Whether the generator holds conversations: a `CausalLM` does by its chat template, others say it in `chats`."""
    if isinstance(generator, CausalLM):
        return generator.tokens.chat
    return isinstance(generator, Chatter) and bool(getattr(generator, "chats", True))


def pieces(
    generator: Generator, what: Asked, *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
) -> Iterator[str]:
    """Return an iterator over the pieces of the answer, as they are made where the generator can stream."""
    if not isinstance(what, str):
        return cast(Chatter, generator).chat(what, max_new_tokens=max_new_tokens, stop=stop)
    if isinstance(generator, Streamer):
        return generator.stream(what, max_new_tokens=max_new_tokens, stop=stop)
    return _whole(generator, what, max_new_tokens, stop)


def _whole(generator: Generator, prompt: str, max_new_tokens: int | None, stop: Sequence[str] | None) -> Iterator[str]:
    # written when the first piece is asked for, as a stream is: whoever serves others does it on a thread for that
    yield from generator.generate([prompt], max_new_tokens=max_new_tokens, stop=stop)
