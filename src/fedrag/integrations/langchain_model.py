"""LangChain's chat model over a RAG system's generator, and a model of LangChain as the generator of a RAG system.

model = ChatFedRAG(rag=rag)
model.invoke([SystemMessage("Be brief."), HumanMessage("Where is the key ?")])
for chunk in model.stream("Where is the key ?"): print(chunk.text)
"""

# ruff: noqa: E402  (imports after `require`)
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import Field

from fedrag.errors import InputError
from fedrag.generators.causal import CausalLM
from fedrag.integrations.answering import Asked, asked, pieces
from fedrag.integrations.langchain_index import refuse
from fedrag.integrations.langchain_store import Saved
from fedrag.optional import require
from fedrag.prompts import Tokens
from fedrag.types import Generator

require("langchain_core", extra="langchain")

from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_openai_messages, get_buffer_string
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult


class ChatFedRAG(Saved, BaseChatModel):
    """The system's generator, without its retriever. Decoding is greedy.

    One message of a user is a prompt, as fedrag trains on it. More messages are written by the tokenizer's chat
    template, in which what they say can be no control token; without a template, as lines of a dialogue.

    Args:
        max_tokens: tokens of an answer; `None` leaves it to the generator. A call may say otherwise.
        stop: strings that end an answer; a call may say otherwise.
        temperature: 0, the only one that there is.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] | None = None
    temperature: float = Field(default=0.0, ge=0.0, le=0.0)

    @property
    def model_name(self) -> str:
        """What traces call the model: the name that its weights were read from, or the generator's class."""
        config = getattr(getattr(self.generator, "model", None), "config", None)
        return getattr(config, "name_or_path", "") or type(self.generator).__name__

    @property
    def generator(self) -> Generator:
        """The system's generator. Raises `InputError` when it has none."""
        if self.rag.generator is None:
            raise InputError("this system has no generator, so it cannot chat: give it one")
        return self.rag.generator

    @property
    def _llm_type(self) -> str:
        return "fedrag"

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # the key of LangChain's cache, in which all live models look alike: weights and settings tell them apart
        weights = getattr(self.generator, "fingerprint", id(self.generator))
        own = [getattr(self.generator, name, None) for name in ("max_new_tokens", "stop")]
        return f"{super()._get_llm_string(stop, **kwargs)} {weights} {self.max_tokens} {self.stop} {own}"

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,  # LangChain tells its callbacks of every chunk itself
        *,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        refuse(kwargs)
        text, prompt = "", _asked(self.generator, messages)
        most = self.max_tokens if max_tokens is None else max_tokens
        ends = self.stop if stop is None else stop
        for piece in pieces(self.generator, prompt, max_new_tokens=most, stop=ends):
            text += piece
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        end = AIMessageChunk(content="", response_metadata={"model_name": self.model_name}, chunk_position="last")
        if isinstance(self.generator, Tokens):
            if isinstance(prompt, str):
                ids = self.generator.prompt_ids(prompt)
            else:
                ids = cast(CausalLM, self.generator).tokens.chat_ids(prompt)
            given, made = len(ids), self.generator.count(text)  # of the text: which tokens made it is not told
            end.usage_metadata = UsageMetadata(input_tokens=given, output_tokens=made, total_tokens=given + made)
        yield ChatGenerationChunk(message=end)


@dataclass(frozen=True, slots=True)
class LangChainGenerator:
    """A language model of LangChain as a `Generator` and `Streamer`: it answers, and cannot be trained."""

    llm: BaseLanguageModel[Any]

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> list[str]:
        """Return one continuation per prompt; `max_new_tokens` goes on as `max_tokens`, as LangChain calls it."""
        return [_text(said) for said in self.llm.batch(list(prompts), **_settings(max_new_tokens, stop))]

    def stream(
        self, prompt: str, *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Yield the pieces of the continuation as the model gives them."""
        return map(_text, self.llm.stream(prompt, **_settings(max_new_tokens, stop)))


def _asked(generator: Generator, messages: list[BaseMessage]) -> Asked:
    read: list[dict[str, str]] = convert_to_openai_messages(messages, text_format="string")
    for message in read:
        if not isinstance(cast(Any, message["content"]), str):
            raise InputError(f"the {message['role']} message holds more than text, which this model cannot read")
    return asked(generator, read, lambda: f"{get_buffer_string(messages)}\nAI:")


def _settings(max_new_tokens: int | None, stop: Sequence[str] | None) -> dict[str, Any]:
    """What LangChain's models call the settings of a call; those that are not given are left to the model."""
    named = {"max_tokens": max_new_tokens, "stop": None if stop is None else list(stop)}
    return {name: value for name, value in named.items() if value is not None}


def _text(said: Any) -> str:
    """The text of what a model says: a language model's string, or a chat model's message."""
    return said if isinstance(said, str) else str(said.text)
