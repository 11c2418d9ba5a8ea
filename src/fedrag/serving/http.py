"""A system as a web application: OpenAI's API and, where wanted, MCP, behind one token, one set of limits.

Before a request reaches either, a guard asks for the token (in constant time), for a `Host` that is ours where only
this machine may ask (a web page cannot reach us under its own name then), for JSON, and for a body of at most 1 MiB.
Errors have OpenAI's shape. What went wrong inside is told to nobody but the log, by class and place in the code: what
an exception says may hold questions and documents.

    served = Served(RAGSystem.load("my-rag"), name="my-rag")
    uvicorn.run(application(served, token="..."))
"""

# ruff: noqa: E402  (imports after `require`)
from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from fedrag.errors import BudgetError, InputError, StaleIndexError, StoreError
from fedrag.integrations.answering import RemoteError
from fedrag.optional import require
from fedrag.serving.discreet import Discreet, log_to_stderr
from fedrag.serving.openai import failure, routes
from fedrag.serving.requests import Refusal
from fedrag.serving.served import Busy, Served

require("starlette", extra="serve")
require("uvicorn", extra="serve")

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 2**20
"""The largest body of a request."""
_READ_ON = 32 * MOST_BYTES  # so much is read of one that is refused: who still sends would see a reset, and no reason
_PATIENCE = 60.0  # seconds for a body to come in
_SHORT = 5.0  # and for one that is refused already


def application(served: Served, *, token: str | None, hosts: Collection[str] = (), mcp: bool = False) -> Starlette:
    """Return the application of a system.

    Args:
        served: the system; it is closed when the application ends.
        token: what clients send as `Authorization: Bearer ...`; `None` lets everybody in.
        hosts: names under which this server may be asked; empty: any.
        mcp: serve its MCP server too, at `/mcp`.
    """
    beside = _mcp(served) if mcp else None
    logging.getLogger("uvicorn.error").addFilter(_discreet)  # whichever program runs the server

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(served.close)
            if beside is not None:
                await stack.enter_async_context(beside.router.lifespan_context(beside))
            yield

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    own: list[BaseRoute] = [Route("/health", health), *routes(served)]
    if beside is not None:
        # no GET: such a stream never ends, and a server that keeps nothing has nothing to say on it
        own.append(Route("/mcp", beside, methods=["POST"]))
    return Starlette(
        routes=own,
        lifespan=lifespan,
        middleware=[Middleware(_Guard, token=token, hosts=frozenset(hosts))],
        exception_handlers={
            HTTPException: _http,
            InputError: _input,
            Busy: _busy,
            ClientDisconnect: _left,
            RemoteError: _remote,
            StoreError: _store,
            Exception: _inside,
        },
    )


def _mcp(served: Served) -> Starlette:
    """The application of the system's MCP server; the guard asks for names and sizes, so that it need not."""
    require("mcp", extra="serve")
    from mcp.server.transport_security import TransportSecuritySettings

    from fedrag.serving.mcp import mcp_server

    settings = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return mcp_server(served).streamable_http_app(stateless_http=True, transport_security=settings)


def listen(app: Starlette, listener: socket.socket, *, grace: float) -> None:
    """Serve on a socket until SIGINT or SIGTERM, then let open answers end, for `grace` seconds at most."""
    log_to_stderr()
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it writes out what exceptions say
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _done)
    web_server(app, grace=grace).run(sockets=[listener])


def web_server(app: Starlette, *, grace: float) -> uvicorn.Server:
    """The server that `listen` runs: quiet, without web sockets, and believing no header about who asks."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(grace)),
        )
    )


def _discreet(record: logging.LogRecord) -> bool:
    """Take what an exception says out of a line of the log, for every handler."""
    if record.exc_info:
        record.exc_text, record.exc_info = Discreet().formatException(record.exc_info), None
    return True


def _done(_signal: int, _frame: object) -> None:
    """A signal that uvicorn raises once more when it has carried it out: the process ends as one that did its work."""


class _Guard:
    def __init__(self, app: ASGIApp, *, token: str | None, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts
        self.token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        if refused is None or "expect" not in headers:  # who expects a word before sending is told the reason at once
            try:
                async with asyncio.timeout(_PATIENCE if refused is None else _SHORT):
                    body = await _body(receive)
            except TimeoutError:
                late = failure(408, f"the body took more than {_PATIENCE:.0f} seconds", headers=_CLOSE)
                refused = refused or late
            else:
                if body is None:
                    return None
                if refused is None and len(body) <= MOST_BYTES:
                    return await self.app(scope, _again(body, receive), send)
                refused = refused or _too_large()
        await refused(scope, receive, send)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        if self.hosts and _name(headers.get("host", "")) not in self.hosts:
            said = f"this server answers to the names {', '.join(sorted(self.hosts))}, and a request came for another"
            return failure(421, said, headers=_CLOSE)
        if scope["path"] == "/health":
            return None
        given = headers.get("authorization", "").encode()
        if self.token is not None and not hmac.compare_digest(given, self.token):
            said = "the token is missing or wrong: send the header 'Authorization: Bearer TOKEN'"
            return failure(401, said, code="invalid_api_key", headers={"www-authenticate": "Bearer", **_CLOSE})
        if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")) > MOST_BYTES:
            return _too_large()
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return failure(415, "send JSON, with the header 'Content-Type: application/json'", headers=_CLOSE)
        return None


_CLOSE = {"connection": "close"}
_log = logging.getLogger(__name__)


def _too_large() -> Response:
    return failure(413, f"the body is larger than {MOST_BYTES} bytes: send less at a time", headers=_CLOSE)


def _name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0].lower()


async def _body(receive: Receive) -> bytes | None:
    """The whole body, or a little more than `MOST_BYTES` of it; `None` from a client that has left."""
    body, seen, more = bytearray(), 0, True
    while more and seen <= _READ_ON:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        seen += len(part)
        body += part if len(body) <= MOST_BYTES else b""
        more = message.get("more_body", False)
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


# -- errors, by class


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return failure(error.status_code, str(error.detail), headers=error.headers or {})


async def _input(_: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return failure(error.status, str(error), param=error.param, code=error.code)
    return failure(400, str(error), code="context_length_exceeded" if isinstance(error, BudgetError) else None)


async def _busy(_: Request, error: Exception) -> Response:
    return failure(503, str(error), code="busy", headers={"retry-after": "1"})


async def _store(request: Request, error: Exception) -> Response:
    if not isinstance(error, StaleIndexError):
        raise error
    said = "another encoder wrote the index: whoever runs this server must refresh it (retriever.refresh())"
    return failure(503, said, code="stale_index", headers={"retry-after": "60"})


async def _remote(_: Request, error: Exception) -> Response:
    _log.warning("%s", error)  # model, host, status and the next step, and nothing that was asked
    return failure(502, str(error), code="generator_failed")


async def _left(_: Request, error: Exception) -> Response:
    return failure(499, "the client has left")  # nobody reads it


async def _inside(_: Request, error: Exception) -> Response:
    # the server closes the connection after an error that nobody foresaw
    return failure(500, "something went wrong inside the server; its log says where", headers=_CLOSE)
