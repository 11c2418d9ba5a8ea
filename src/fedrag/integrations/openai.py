"""A language model behind an address, as the generator of a RAG system: any server that speaks OpenAI's protocol.

vLLM, llama.cpp, Ollama, OpenAI itself and `fedrag serve` do. Such a model answers, streams and holds conversations; it
gives no log-likelihoods, so it is not trained, and `LSR` cannot learn from it. The retriever in front of it can be
trained by what needs no generator (`Contrastive`, `Distillation`).

    generator = RemoteLM("qwen3", base_url="http://127.0.0.1:8000/v1", api_key=lambda: os.environ["MY_KEY"])
    rag = RAGSystem(retriever=retriever, generator=generator)
    rag.query("How do I rotate the key?")

>>> RemoteLM("qwen3", base_url="http://127.0.0.1:8000/v1", api_key="secret")
RemoteLM('qwen3', base_url='http://127.0.0.1:8000/v1')

Key, headers, prompts and what a server says of an error are in no error and no log. Of the environment, neither keys
nor organisation nor headers (`OPENAI_CUSTOM_HEADERS`) are sent: they may be meant for another server.
"""

# ruff: noqa: E402  (imports after `require`)
from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import urlsplit

from fedrag.errors import ConfigError, InputError
from fedrag.generators.tokens import Message
from fedrag.integrations.answering import Asked, RemoteError
from fedrag.optional import require

require("openai", extra="openai")

import openai

T = TypeVar("T")

_STEPS = {
    400: "use fewer or shorter documents, or see its log for a setting that it does not know",
    401: "check api_key",
    403: "check api_key and what it may be used for",
    404: "check the model's name, and base_url, which mostly ends in /v1",
    429: "lower concurrency, raise retries, or come back later",
}
_CODES = {"context_length_exceeded", "insufficient_quota", "invalid_api_key", "model_not_found", "rate_limit_exceeded"}
"""What a server may say of an error and be quoted: words of the protocol, which can hold nothing of a prompt."""


class RemoteLM:
    """A model of a server that speaks OpenAI's protocol: a `Generator` and `Streamer`, which also holds conversations.

    A prompt goes as one message of a user, or as it is with `chat=False`. Nothing here counts tokens, so documents go
    into it whole: a prompt that is too long is the server's to refuse. Decoding is greedy.

    Args:
        model: its name, as the server knows it.
        base_url: the server's address; it mostly ends in `/v1`.
        api_key: the key, or a function that returns it, called for each request. `None` sends none.
        max_new_tokens: tokens of an answer; a call may say otherwise.
        timeout: seconds that the server may say nothing.
        retries: how often a request is repeated after 429, 5xx, a time-out or a broken connection; the wait grows, or
            is what the server asks for (`Retry-After`, up to two minutes). A stream that broke off is not repeated.
        concurrency: requests at a time that `generate` makes, over all threads. A stream is one more.
        chat: whether the server writes prompts with the model's chat template (`/chat/completions`), or the model
            goes on from the bare text (`/completions`), as one that was tuned without a template wants it.
        system: a system message, put before conversations that have none.
        headers: further headers.
        extra_body: further fields of a request, or others in place of those that are sent (`temperature`,
            `max_tokens`, `stop`); `None` leaves a field out.

    Raises `ConfigError` for impossible settings. It is not pickled, since a key may be in it.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | Callable[[], str] | None = None,
        max_new_tokens: int = 64,
        timeout: float = 60.0,
        retries: int = 2,
        concurrency: int = 8,
        chat: bool = True,
        system: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.base_url, self._host = base_url, _host(base_url)
        self.max_new_tokens = max_new_tokens
        self.chats = chat
        self._timeout = timeout
        for name, value, least in (
            ("max_new_tokens", max_new_tokens, 1), ("concurrency", concurrency, 1), ("retries", retries, 0),
        ):  # fmt: skip
            if value < least:
                raise ConfigError(f"{name}={value}: it must be at least {least}")
        if not timeout > 0:
            raise ConfigError(f"timeout={timeout}: it must be more than 0 seconds")
        if system is not None and not chat:
            raise ConfigError("system= is for conversations, got chat=False too: write it into the prompt")
        if isinstance(api_key, str):
            _sendable("api_key", api_key)
        self._key = (lambda: api_key) if isinstance(api_key, str) else api_key
        more = (headers or {}).items()
        self._more = {name.lower(): _sendable(f"the header {name}", value) for name, value in more}
        named = (line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines())
        self._left_out = {
            "authorization",
            "openai-organization",
            "openai-project",
            *map(str.lower, filter(None, named)),
        }
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._extra = dict(extra_body or {})
        # redirects are not followed: prompt and headers would go where nobody sent them
        http = openai.DefaultHttpxClient(timeout=timeout, follow_redirects=False)
        weakref.finalize(self, http.close)
        # the key is no part of the client, which would take one from the environment where it gets none
        self._client = openai.OpenAI(api_key="-", base_url=base_url, max_retries=retries, http_client=http)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="RemoteLM")

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> list[str]:
        """Return one continuation per prompt, in order, without outer white space.

        The first that fails ends them all. Raises `RemoteError`.
        """
        if isinstance(prompts, str):
            raise InputError("generate() takes a list of prompts, got one string: wrap it in a list")
        body = self._body(max_new_tokens, stop)
        return list(self._pool.map(self._whole, map(self._asked, prompts), repeat(body)))

    def stream(
        self, prompt: str, *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Return an iterator over the pieces of what `generate` returns; closing it closes the connection."""
        return self._pieces(self._asked(prompt), self._body(max_new_tokens, stop))

    def chat(
        self, messages: Sequence[Message], *, max_new_tokens: int | None = None, stop: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Return an iterator over the pieces of the answer to a conversation. The server writes its control tokens."""
        if not self.chats:
            raise ConfigError("chat=False: this model goes on from a bare text; pass a prompt, as one text")
        return self._pieces(self._conversation(messages), self._body(max_new_tokens, stop))

    def __repr__(self) -> str:
        return f"RemoteLM({self.model!r}, base_url={self.base_url!r})"

    def __reduce__(self) -> NoReturn:
        raise InputError("a RemoteLM is neither pickled nor copied, as a key may be in it: make another where needed")

    def _asked(self, prompt: str) -> Asked:
        return self._conversation([{"role": "user", "content": prompt}]) if self.chats else prompt

    def _conversation(self, messages: Sequence[Message]) -> list[Message]:
        begun = any(message["role"] == "system" for message in messages)
        return [*([] if begun else self._system), *messages]

    def _body(self, max_new_tokens: int | None, stop: Sequence[str] | None) -> dict[str, Any]:
        most = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if most < 1:
            raise InputError(f"max_new_tokens={most}: it must be at least 1")
        named = {"temperature": 0, "max_tokens": most, "stop": list(stop) if stop else None, **self._extra}
        return {name: value for name, value in named.items() if value is not None}

    def _headers(self) -> dict[str, Any]:
        """The headers of a request, made anew for each, as keys change; those of the environment are left out."""
        key = {} if self._key is None else {"authorization": f"Bearer {_sendable('api_key', self._key())}"}
        return {**dict.fromkeys(self._left_out, openai.Omit()), **key, **self._more}

    def _open(self, what: Asked, body: dict[str, Any], *, stream: bool) -> Any:
        """Send a request. Raises what `_call` explains."""
        asking: dict[str, Any] = {"prompt": what} if isinstance(what, str) else {"messages": what}
        client: Any = self._client.completions if isinstance(what, str) else self._client.chat.completions
        headers = self._headers()
        asking |= {"model": self.model, "stream": stream, "extra_body": body, "extra_headers": headers}
        return self._call(lambda: client.create(**asking))

    def _whole(self, what: Asked, body: dict[str, Any]) -> str:
        first = _first(self._open(what, body, stream=False))
        if first is None:
            raise self._wrong("answered without a choice, so without a text", "check that base_url is such a server's")
        text, reason = _text(first, "message", what), self._ending(first)
        if text is None:
            step = "raise max_new_tokens, as it may think first" if reason == "length" else "see its log"
            raise self._wrong("answered without a text", step)
        return text.strip()

    def _pieces(self, what: Asked, body: dict[str, Any]) -> Generator[str, None, Any]:
        ended, begun, held = None, False, ""  # why it ends; held: white space, which may turn out to be the end
        with self._open(what, body, stream=True) as events:
            while (event := self._call(lambda: next(events, None))) is not None:
                if (first := _first(event)) is None:
                    continue  # of usage, say
                text = held + (_text(first, "delta", what) or "")
                text = text if begun else text.lstrip()
                held = text[len(text.rstrip()) :]
                if said := text.rstrip():
                    begun = True
                    yield said
                ended = ended or self._ending(first)
        if ended is None:
            raise self._wrong("broke off in the middle of its answer", "ask again, or see its log")
        return ended

    def _ending(self, choice: Any) -> Any:
        """Why the answer ends here, if it does. Raises `RemoteError` where the server took it away."""
        reason = getattr(choice, "finish_reason", None)
        if reason == "content_filter":
            raise self._wrong("withheld its answer (finish_reason 'content_filter')", "see what its filter stops")
        return reason

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (openai.OpenAIError, ValueError) as error:  # ValueError: what came is no JSON
            explained = self._explained(error)
        raise explained  # out here, since what was caught, the request with key and prompt, would come along

    def _explained(self, error: openai.OpenAIError | ValueError) -> RemoteError:
        if isinstance(error, openai.APITimeoutError):
            return self._wrong(
                f"said nothing for {self._timeout:g} s", "raise timeout or retries, or lower concurrency"
            )
        if isinstance(error, openai.APIConnectionError):
            return self._wrong("cannot be reached, or broke off its answer", "check base_url, and that it is running")
        if isinstance(error, openai.APIStatusError):
            status = error.status_code
            code = f" ({error.code})" if error.code in _CODES else ""
            step = (
                "give the address that it redirects to as base_url" if status < 400 else "see its log, or raise retries"
            )
            return self._wrong(f"answered {status}{code}", _STEPS.get(400 if status == 422 else status, step))
        if isinstance(error, openai.APIError):
            return self._wrong("ended its answer with an error", "see its log, or ask again")
        return self._wrong("answered with what is no JSON", "check that base_url is such a server's")

    def _wrong(self, what: str, step: str) -> RemoteError:
        return RemoteError(f"{self.model!r} at {self._host} {what}: {step}")


def _first(answer: Any) -> Any:
    """The first choice of an answer or of a part of it; `None` where there is none, or where it is something else."""
    choices = getattr(answer, "choices", None)  # the client checks no types, and gives a text where it gets no JSON
    return cast(list[Any], choices)[0] if isinstance(choices, list) and choices else None


def _text(choice: Any, place: str, what: Asked) -> str | None:
    bare = isinstance(what, str)
    found = getattr(choice if bare else getattr(choice, place, None), "text" if bare else "content", None)
    return found if isinstance(found, str) else None


def _host(base_url: str) -> str:
    """Return host and port. Raises `ConfigError` for an address that is none, or that holds more than a path."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("base_url must begin with http:// or https:// and name a host, as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"base_url (of {parts.hostname}) holds a user, a query or a fragment, which logs show: pass what is secret "
            "as api_key or in headers"
        )
    return parts.netloc


def _sendable(what: str, value: Any) -> str:
    """Return the value of a header. Raises `ConfigError`, which does not show it, for one that cannot be sent."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be a text, got a {type(value).__name__}: is it set where it is read from?")
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
        raise ConfigError(f"{what} is empty, or holds line breaks, outer spaces or letters outside ASCII: strip it")
    return value
