"""What a site may reach of the server: its fleet API, and nothing else.

Flower serves three interfaces on one port. Sites need `/v1/fleet`. Through `/v1/control` whoever comes may register
keys and submit code, which then runs on the server, and through `/v1/runtime` whoever comes may play the server itself;
neither asks for a credential. So the SuperLink listens on the loopback alone, and this process stands before it: it
lets ten paths through and answers 403 to all else. A proxy with the same rule does as well (`docs/deployment.md` has
nginx's).

    python -m fedrag.federated.deployment.gate --listen 0.0.0.0:8000 --upstream 127.0.0.1:8001 --keys keys/server

Bodies are passed on as they come, in pieces, so that neither side's size is held here.
"""

from __future__ import annotations

import argparse
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from fedrag.errors import FedRAGError
from fedrag.federated.deployment.processes import split_address

FLEET = (
    "activate-node",
    "confirm-message-received",
    "deactivate-node",
    "get-fab",
    "get-run",
    "pull-messages",
    "pull-object",
    "push-messages",
    "push-object",
    "send-node-heartbeat",
)
"""What a registered site calls. Registering itself is not among them: the server's operator registers sites."""

PATHS = frozenset(f"/v1/fleet/{name}".encode() for name in FLEET)
# RFC 9110, 7.6.1: these belong to one connection, not to the message; the host is the upstream's
_OWN = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection", b"host"}
_TIMEOUT = httpx.Timeout(300.0, connect=10.0)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def allowed(method: str, path: bytes) -> bool:
    """Whether a request passes. The path is compared as it was sent: nothing is decoded that could be read anew."""
    return method == "POST" and path in PATHS


def gate(upstream: httpx.AsyncClient) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application: passes on what is allowed."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(upstream, receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"a {scope['type']} connection came, and only http is served")
        path: bytes = scope["raw_path"]
        if not allowed(scope["method"], path) or scope["query_string"]:
            return await _answer(send, 403, b"closed to sites\n")
        headers = [(name, value) for name, value in scope["headers"] if name not in _OWN]
        request = upstream.build_request("POST", path.decode("ascii"), headers=headers, content=_body(receive))
        try:
            response = await upstream.send(request, stream=True)
        except httpx.TransportError:
            return await _answer(send, 502, b"the server behind does not answer\n")
        try:
            kept = [(name, value) for name, value in response.headers.raw if name.lower() not in _OWN]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    return application


async def _body(receive: Receive) -> AsyncGenerator[bytes]:
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise httpx.ReadError("the site went away in the middle of its request")
        yield event.get("body", b"")
        more = event.get("more_body", False)


async def _answer(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


async def _lifespan(upstream: httpx.AsyncClient, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await upstream.aclose()
    await send({"type": "lifespan.shutdown.complete"})


def main(words: Sequence[str]) -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m fedrag.federated.deployment.gate", allow_abbrev=False)
    parser.add_argument("--listen", required=True, help="address that sites reach")
    parser.add_argument("--upstream", required=True, help="address of the SuperLink")
    parser.add_argument("--keys", type=Path, required=True, help="folder of ca.crt, server.crt and server.key")
    settings = parser.parse_args(words)
    host, port = split_address(settings.listen)
    trusted = ssl.create_default_context(cafile=str(settings.keys / "ca.crt"))
    client = httpx.AsyncClient(base_url=f"https://{settings.upstream}", verify=trusted, timeout=_TIMEOUT)
    uvicorn.run(
        gate(client),
        host=host,
        port=port,
        ssl_certfile=str(settings.keys / "server.crt"),
        ssl_keyfile=str(settings.keys / "server.key"),
        ws="none",
        log_level="warning",
        server_header=False,
        date_header=False,  # the upstream's passes through
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FedRAGError as error:
        sys.exit(f"fedrag: {error}")
