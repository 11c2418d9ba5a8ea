"""The part of OpenAI's HTTP API that a RAG system can do, for the many programs that speak it already.

`/v1/chat/completions` answers the last message of the user from the documents found for it, whole or as a stream of
server-sent events; `/v1/embeddings` gives the retriever's vectors; `/v1/models` names the system. Requests may carry
`rag: {top_k, where}`; answers carry `rag: {sources, ignored}`, in a stream with its first chunk. Decoding is greedy.

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=token)
    answer = client.chat.completions.create(
        model="my-rag",
        messages=[{"role": "user", "content": "How do I rotate the key?"}],
        extra_body={"rag": {"top_k": 3}},
    )
    answer.choices[0].message.content, answer.model_extra["rag"]["sources"]
"""

# ruff: noqa: E402  (imports after `require`)
from __future__ import annotations

import asyncio
import base64
import json
import math
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from fedrag.integrations.answering import RemoteError
from fedrag.optional import require
from fedrag.serving.requests import ChatRequest, EmbeddingRequest, Refusal, Search, read
from fedrag.serving.served import Reply, Served
from fedrag.types import Hit

require("starlette", extra="serve")

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def failure(
    status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] = {}
) -> Response:
    """Return an error in OpenAI's shape."""
    return _json(_error(status, message, param, code), status, headers)


def routes(served: Served) -> list[Route]:
    """The endpoints, under `/v1`."""
    api = _Endpoints(served)
    return [
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/embeddings", api.embeddings, methods=["POST"]),
    ]


class _Endpoints:
    def __init__(self, served: Served) -> None:
        self.served = served
        self.card = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "fedrag"}

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self.card]})

    async def model(self, request: Request) -> Response:
        self._known(request.path_params["name"])
        return _json(self.card)

    async def chat(self, request: Request) -> Response:
        asked = read(ChatRequest, await request.body())
        self._known(asked.model)
        if not self.served.answers:
            raise Refusal("this system has no generator: it searches and embeds, and answers nothing", param="model")
        search = asked.rag or Search()
        reply = await self.served.answer(
            [said.message for said in asked.messages],
            k=search.top_k,
            where=search.where,
            max_new_tokens=asked.max_completion_tokens or asked.max_tokens,
            stop=asked.stop,
        )
        told = {"sources": [source(hit) for hit in reply.hits], "ignored": asked.ignored}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.served.name}
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return _Events(reply, _events(reply, head, told, usage))
        text = await _unless_left(request, _whole(reply))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        return _json({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(reply), "rag": told})

    async def embeddings(self, request: Request) -> Response:
        asked = read(EmbeddingRequest, await request.body())
        self._known(asked.model)
        if asked.dimensions is not None:  # one text tells, before the others are embedded
            width = (await self.served.embed(asked.input[:1], asked.input_type)).shape[1]
            if asked.dimensions != width:
                raise Refusal(f"dimensions: this model's vectors have {width}; leave it out", param="dimensions")
        vectors = await _unless_left(request, self.served.embed(asked.input, asked.input_type))  # [n, d]
        data = [
            {"object": "embedding", "index": place, "embedding": row}
            for place, row in enumerate(_written(vectors, asked.encoding_format))
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}  # clients want the field; tokens of an encoder are not counted
        told = {"ignored": asked.ignored}
        return _json({"object": "list", "data": data, "model": self.served.name, "usage": usage, "rag": told})

    def _known(self, name: str) -> None:
        if name != self.served.name:
            said = f"model: there is none of this name here; ask for {self.served.name!r}"
            raise Refusal(said, param="model", status=404, code="model_not_found")


class _Events(StreamingResponse):
    """Server-sent events of an answer, which is written no further once they end, however they do."""

    media_type = "text/event-stream"

    def __init__(self, reply: Reply, events: AsyncGenerator[bytes]) -> None:
        super().__init__(events, headers=_FRESH)
        self.reply, self.events = reply, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reply.close()
            await self.events.aclose()


async def _events(reply: Reply, head: dict[str, Any], told: dict[str, Any], usage: bool) -> AsyncGenerator[bytes]:
    head = {**head, "object": "chat.completion.chunk", **({"usage": None} if usage else {})}

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        return _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})

    try:
        yield chunk({"role": "assistant", "content": ""}, rag=told)
        async for piece in reply.pieces:
            yield chunk({"content": piece})
        yield chunk({}, reply.finish)
        if usage:
            yield _event({**head, "choices": [], "usage": _usage(reply)})
        yield b"data: [DONE]\n\n"
    except Exception as error:  # whatever it is, the client learns that the answer is not whole; the log tells the rest
        status, said = 500, "the answer broke off inside the server; ask again"
        if isinstance(error, RemoteError):
            status, said = 502, str(error)
        yield b"event: error\n" + _event(_error(status, said))
        raise


async def _whole(reply: Reply) -> str:
    try:
        return "".join([piece async for piece in reply.pieces])
    finally:
        reply.close()


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; it ends when the client goes away."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


def source(hit: Hit) -> dict[str, Any]:
    """A document as clients see it."""
    document = hit.document
    return {"id": document.id, "score": hit.score, "text": document.text, "metadata": dict(document.metadata)}


def _usage(reply: Reply) -> dict[str, int] | None:
    if reply.prompt_tokens is None or reply.tokens is None:
        return None
    total = reply.prompt_tokens + reply.tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens, "total_tokens": total}


def _written(vectors: Tensor, form: str | None) -> Sequence[Any]:
    if form != "base64":
        return vectors.tolist()
    return [base64.b64encode(row.tobytes()).decode() for row in vectors.numpy().astype("<f4")]


_FRESH = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy is to pass every event on at once


def _error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _event(content: Any) -> bytes:
    return b"data: " + _bytes(content) + b"\n\n"


def _json(content: Any, status: int = 200, headers: Mapping[str, str] = {}) -> Response:
    return Response(_bytes(content), status, {"cache-control": "no-store", **headers}, "application/json")


def _bytes(content: Any) -> bytes:
    # metadata and scores come from anywhere: an infinite score is no JSON, and half a surrogate no UTF-8
    return json.dumps(_plain(content), ensure_ascii=True, allow_nan=False, default=str).encode()


def _plain(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in cast(Mapping[Any, Any], content).items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in cast(Sequence[Any], content)]
    return content
