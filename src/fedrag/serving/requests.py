"""What a client of OpenAI's API may send, checked before any of it is used.

What fedrag follows is a field here. What would change the answer's kind (tools, several choices, a JSON schema) is
refused by name; what only shapes sampling, which greedy decoding has not, and what nobody knows, is let pass, and told
to the client as ignored. A message about a wrong value names its field, never the value, which may be a question.

>>> ask = b'{"model": "m", "messages": [{"role": "user", "content": "Where ?"}], "temperature": 0.7}'
>>> read(ChatRequest, ask).ignored
['temperature']
>>> read(ChatRequest, b'{"model": "m", "messages": [], "n": 2}')
Traceback (most recent call last):
fedrag.serving.requests.Refusal: messages: List should have at least 1 item after validation, not 0
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedrag.errors import InputError
from fedrag.generators.tokens import Message

MOST_INPUTS = 2048
"""Texts in one request for embeddings; OpenAI's own limit."""
MOST_SOURCES = 100
"""The largest `top_k` that a client may ask for."""
_NAMED = 32  # ignored fields that are told


class Refusal(InputError):
    """A request that is not carried out: `status` of HTTP, the field (`param`) and a code for programs."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def _text(content: Any) -> Any:
    """The text of a message, which may come in parts."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in cast(list[Any], content):
        found = cast(dict[str, Any], part) if isinstance(part, dict) else {}
        if found.get("type") != "text" or not isinstance(found.get("text"), str):
            raise ValueError("holds a part that is no text, and this model reads nothing else")
        texts.append(found["text"])
    return "".join(texts)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_tokens(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(one, int | list) for one in cast(list[Any], value)):
        raise ValueError("holds token ids, which mean something else to every tokenizer: send the text itself")
    return _listed(value)


Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
Count = Annotated[int, Field(strict=True, ge=1, le=2**31)]


class Said(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text)]

    @property
    def message(self) -> Message:
        """The message as chat templates know it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class Search(BaseModel):
    """The field `rag` of a request: how to find documents."""

    model_config = ConfigDict(extra="forbid")

    top_k: Annotated[int, Field(strict=True, ge=0, le=MOST_SOURCES)] | None = None
    where: dict[str, Any] | None = None


class StreamOptions(BaseModel):
    """The field `stream_options`."""

    include_usage: bool = False


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str

    def refuse(self) -> None:
        """Raise `Refusal` for what would need another kind of answer; what would not is forgotten."""
        extra = self.model_extra or {}
        for name, harmless in _REFUSED.items():
            if extra.pop(name, None) not in (None, *harmless):
                raise Refusal(f"{name}: this server does not do that; leave it out", param=name, code="unsupported")

    @property
    def ignored(self) -> list[str]:
        """Names of fields that were given and are not followed."""
        given = [name for name, value in (self.model_extra or {}).items() if value is not None]
        return sorted(name[:_NAMED] for name in given)[:_NAMED]


class ChatRequest(_Request):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=1024)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Annotated[Stops | None, BeforeValidator(_listed)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    rag: Search | None = None


_REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that would make another kind of answer, and the values that would not."""


class EmbeddingRequest(_Request):
    """The body of `/v1/embeddings`; `input_type` is fedrag's: what questions are embedded as may differ."""

    input: Annotated[list[str], BeforeValidator(_no_tokens), Field(min_length=1, max_length=MOST_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    input_type: Literal["query", "document"] = "document"
    dimensions: Count | None = None


R = TypeVar("R", bound=_Request)


def read(kind: type[R], body: bytes) -> R:
    """Return the request that a body holds. Raises `Refusal`, which names the first field that is wrong."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "json_invalid":
            raise Refusal("the body is not JSON: send one JSON object in UTF-8", code="invalid_json") from None
        said = str(first["msg"]).removeprefix("Value error, ")
        raise Refusal(f"{where or 'the body'}: {said}", param=where or None, code=first["type"]) from None
    request.refuse()
    return request
