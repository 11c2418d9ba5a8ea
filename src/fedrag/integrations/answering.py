"""How a generator answers what other libraries ask: a prompt, or a conversation of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from fedrag.generators.causal import CausalLM
from fedrag.generators.tokens import Message
from fedrag.types import Generator, Streamer

Asked = str | list[Message]
"""A prompt, or messages for the chat template of a generator that has one."""


def asked(generator: Generator, messages: Sequence[Message], written: Callable[[], str]) -> Asked:
    """Return what the generator goes on from.

    A lone message of the user is a prompt, as fedrag trains on it. More of them are for the chat template, in which
    what they say can be no control token; without a template they are a text, as the library that asks writes it.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return list(messages) if chats(generator) else written()


def chats(generator: Generator) -> bool:
    """Whether the generator has a chat template."""
    return isinstance(generator, CausalLM) and generator.tokens.chat


def pieces(
    generator: Generator, what: Asked, *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
) -> Iterator[str]:
    """Return an iterator over the pieces of the answer, as they are made where the generator can stream."""
    if not isinstance(what, str):
        return cast(CausalLM, generator).chat(what, max_new_tokens=max_new_tokens, stop=stop)
    if isinstance(generator, Streamer):
        return generator.stream(what, max_new_tokens=max_new_tokens, stop=stop)
    return iter(generator.generate([what], max_new_tokens=max_new_tokens, stop=stop))
