"""Real MCP servers for the tests: in this process, in one of their own, and over HTTP on the loopback."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from mcp import StdioServerParameters
from mcp.server import MCPServer

NOTES = """
import os, pathlib, sys
from mcp.server import MCPServer

with open(sys.argv[1], "a") as starts:
    starts.write(f"{os.getpid()}\\n")
server = MCPServer("notes", log_level="ERROR")

@server.tool()
def search(query: str, limit: int = 5) -> list[dict[str, str]]:
    if query == "die":
        os._exit(3)
    return [{"id": f"n{n}", "text": f"{query} {n} ."} for n in range(limit)]

server.run("stdio")
"""
"""A server of one tool that writes down each of its starts, and dies when asked to."""

FOREIGN = """
import json, sys

TOOL = {"type": "object", "properties": {"term": {"type": "string"}}, "required": ["term"]}
PAGES = {
    None: {"tools": [{"name": "add", "inputSchema": {"type": "object"}}], "nextCursor": "2"},
    "2": {"tools": [{"name": "lookup", "inputSchema": TOOL}]},
}
for line in sys.stdin:
    message = json.loads(line)
    given = message.get("params") or {}
    match message["method"]:
        case "initialize":
            about = {"serverInfo": {"name": "old", "version": "1"}, "capabilities": {"tools": {}}}
            answer = {"result": {"protocolVersion": "2025-03-26", **about}}
        case "tools/list":
            answer = {"result": PAGES[given.get("cursor")]}
        case "tools/call":
            answer = {"result": {"content": [{"type": "text", "text": f"All about {given['arguments']['term']} ."}]}}
        case _:
            if "id" not in message or sys.argv[1] == "ignore":
                continue
            answer = {"error": {"code": -32601, "message": "Method not found"}}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""
"""A server of an old protocol, with tools on two pages. What it knows not it refuses, or ignores."""


def notes(starts: Path, **settings: Any) -> StdioServerParameters:
    """The command of a server of `NOTES`; it appends its process id to the file `starts`."""
    return StdioServerParameters(command=sys.executable, args=["-c", NOTES, str(starts)], **settings)


def counted(name: str = "notes") -> tuple[MCPServer[Any], list[str]]:
    """A server in this process, and a list that grows with each connection to it."""
    connections: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        connections.append(name)
        yield

    return MCPServer(name, log_level="ERROR", lifespan=lifespan), connections


def telling(name: str, *texts: Any) -> MCPServer[Any]:
    """A server in this process whose one tool answers always the same."""
    server = MCPServer(name, log_level="ERROR")

    @server.tool()
    def search(query: str) -> list[Any]:
        return list(texts)

    return server


@contextmanager
def over_http(app: Any, port: int = 0) -> Iterator[str]:
    """Serve an ASGI application on the loopback; yields its address."""
    config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
