"""The event loop on which MCP servers are asked, in a thread of its own.

Whoever asks may be any thread, or a task of another loop; connections belong to this one. It ends in bounded time,
whatever the servers do: questions on their way are given up, connections part or are cut off.

>>> server = MCPServer("notes")
>>> @server.tool()
... def search(query: str) -> list[str]:
...     return [f"All about {query} ."]
>>> loop = Loop([MCPSource("notes", server)])
>>> [[found.text for found in answer] for (answer,) in loop.ask(["keys"], 5).result()]
[['All about keys .']]
>>> loop.end()
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from fedrag.errors import StoreError
from fedrag.integrations.mcp_connection import PATIENCE, Connection
from fedrag.integrations.mcp_source import MCPSource
from fedrag.optional import require
from fedrag.types import Document

require("mcp", extra="mcp")

from mcp.server import MCPServer as MCPServer  # noqa: E402

CLOSED = "the MCP retriever was closed while it was asked: ask again, which opens the connections anew"

_TELLING = ("mcp.client.stdio", "mcp.client.session", "mcp.client.streamable_http")  # log what a server sent

Found = list[list[Document] | Exception]  # of one source: documents per query, or why there are none


class Loop:
    """An event loop in a thread, and a connection to each source, opened with the first question."""

    def __init__(self, sources: Sequence[MCPSource]) -> None:
        self._connections = [Connection(source) for source in sources]
        self._loop = asyncio.new_event_loop()
        self._leave = asyncio.Event()
        self._lock, self._ended = threading.Lock(), False
        self._pid = os.getpid()
        self.thread = threading.Thread(target=self._run, name="fedrag-mcp", daemon=True)
        self.thread.start()

    def ask(self, queries: list[str], count: int) -> Future[list[Found]]:
        """Ask every source for documents, `count` a query; cancelling the future cancels the questions.

        Raises `StoreError` after `end`.
        """
        with self._lock:  # nothing may be handed to a loop that takes no more: it would never be done
            if self._ended:
                raise StoreError(CLOSED)
            return asyncio.run_coroutine_threadsafe(_ask(self._connections, queries, count), self._loop)

    def end(self) -> None:
        """Give up what is asked, part from the servers, and wait for that, but not for ever."""
        if os.getpid() != self._pid:  # a forked child has the object, but not the thread
            return
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._leave.set)
        if threading.current_thread() is not self.thread:  # the garbage collector comes by there too
            self.thread.join(2 * PATIENCE)

    def _run(self) -> None:
        own = threading.get_ident()

        def of_others(record: logging.LogRecord) -> bool:
            return record.thread != own

        for name in _TELLING:
            logging.getLogger(name).addFilter(of_others)
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())  # at its end it cancels what is left
        finally:
            for name in _TELLING:
                logging.getLogger(name).removeFilter(of_others)

    async def _serve(self) -> None:
        await self._leave.wait()
        await asyncio.gather(*(connection.close() for connection in self._connections))


async def _ask(connections: list[Connection], queries: list[str], count: int) -> list[Found]:
    return await asyncio.gather(*(connection.ask_all(queries, count) for connection in connections))
