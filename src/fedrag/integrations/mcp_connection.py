"""One kept connection to an MCP server, opened with the first question and opened again when it broke.

A connection belongs to the event loop and to the task that opened it, so a task of its own holds it, and hands out the
client. The process of a stdio server lives as long: it is started once, not with every question.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from fedrag.errors import FedRAGError
from fedrag.integrations.mcp_reading import documents, links, resource
from fedrag.integrations.mcp_source import MCPSource, search
from fedrag.optional import require
from fedrag.types import Document

require("mcp", extra="mcp")

import httpx2  # noqa: E402
from mcp import Client, MCPError, StdioServerParameters  # noqa: E402
from mcp.client.stdio import stdio_client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402
from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST, CallToolResult, Tool  # noqa: E402

_AT_ONCE = 16  # questions of one call that a server has at the same time
_LINKS = 8  # linked resources that are read for one answer
_GONE = (CONNECTION_CLOSED, INVALID_REQUEST)  # the second: over HTTP, of a session that the server forgot


PATIENCE = 8.0
"""Seconds for a server to part in peace; mcp ends a process that does not in less."""


class Closed(Exception):
    """The retriever was closed while it was asked."""


class Refused(Exception):
    """The server answered, and what it says is that it cannot: its text is for nobody else."""


@dataclass(slots=True, eq=False)
class _Held:
    """A connection, open or about to be."""

    opened: asyncio.Future[tuple[Client, list[Tool]]]
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    answered: bool = False
    silent: int = 0  # answers not waited for to the end, since the last that came


class Connection:
    """The way to one source. Everything here runs on one event loop."""

    def __init__(self, source: MCPSource) -> None:
        self.source = source
        self._held: _Held | None = None
        self._tasks: dict[asyncio.Task[None], _Held] = {}
        self._asking: set[asyncio.Task[list[Document]]] = set()
        self._closed = False

    async def ask_all(self, queries: list[str], count: int) -> list[list[Document] | Exception]:
        """Documents per query, or why there are none.

        A query that the server refuses is its own affair; a server that is silent or gone is asked no further query.

        Raises `ConfigError` if the tool or its parameters cannot be told.
        """
        places = asyncio.Semaphore(_AT_ONCE)
        failed: list[Exception] = []

        async def outcome(query: str) -> list[Document] | Exception:
            async with places:
                if failed:
                    return failed[0]
                task = asyncio.create_task(self._ask(query, count))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
                (found,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(found, asyncio.CancelledError):  # by close(): who cancels the question gets no further
                    found = Closed()
                if isinstance(found, FedRAGError) or not isinstance(found, (list, Exception)):
                    raise found
                if isinstance(found, Exception) and not isinstance(found, Refused):
                    failed.append(found)
                return found

        return await asyncio.gather(*map(outcome, queries))

    async def close(self) -> None:
        """Close what is open, for good; a server that does not part in time is left, its process killed."""
        self._closed, self._held = True, None
        for asking in self._asking:  # a question may be as patient as it likes, and nothing is opened for it again
            asking.cancel()
        for task, held in self._tasks.items():
            held.leave.set()
            if not held.opened.done():
                task.cancel()
        for _ in range(2):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=PATIENCE)
            for task in self._tasks:
                task.cancel()

    async def _ask(self, query: str, count: int) -> list[Document]:
        again = False
        while True:
            held = self._hold()
            client, tools = await asyncio.shield(held.opened)
            call = search(self.source, tools)
            try:
                async with asyncio.timeout(self.source.timeout):
                    result = await client.call_tool(call.tool, call.arguments(query, count))
                    held.answered, held.silent = True, 0
                    if result.is_error:
                        raise Refused
                    return await self._read(client, result)
            except TimeoutError:
                held.silent += 1
                if held.silent > 1:  # one may be slow; two in a row, and none between
                    self._drop(held)
                raise
            except MCPError as error:
                if error.code not in _GONE:
                    raise Refused from error
                self._drop(held)
                if again or not held.answered:  # it would be the same once more
                    raise
                again = True

    async def _read(self, client: Client, result: CallToolResult) -> list[Document]:
        found, linked = documents(result, self.source.name), links(result)[:_LINKS]
        for read in await asyncio.gather(*map(client.read_resource, linked), return_exceptions=True):
            if not isinstance(read, BaseException):
                found += resource(read.contents, self.source.name)
        if linked and not found:
            raise Refused
        return found

    def _hold(self) -> _Held:
        if self._closed:
            raise Closed
        if self._held is None:
            held = self._held = _Held(asyncio.get_running_loop().create_future())
            task = asyncio.create_task(self._open(held))
            self._tasks[task] = held
            task.add_done_callback(self._ended)
        return self._held

    def _drop(self, held: _Held) -> None:
        held.leave.set()
        if self._held is held:
            self._held = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        held = self._tasks.pop(task)
        self._drop(held)
        error = ConnectionAbortedError() if task.cancelled() else task.exception()
        if not held.opened.done():
            held.opened.set_exception(error or ConnectionAbortedError())
            held.opened.exception()  # whoever waited has it; nobody need have

    async def _open(self, held: _Held) -> None:
        async with asyncio.timeout(self.source.timeout) as patience, AsyncExitStack() as stack:
            target = self.source.target
            if isinstance(target, str):
                web = httpx2.AsyncClient(headers=self.source.sent(), timeout=self.source.timeout)
                await stack.enter_async_context(web)
                target = streamable_http_client(target, http_client=web)
            elif isinstance(target, StdioServerParameters):  # what it writes to stderr is nobody's here
                quiet = stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115 - the stack closes it
                target = stdio_client(target, quiet)
            client = await stack.enter_async_context(Client(target))
            page = await client.list_tools()
            tools = page.tools
            while page.next_cursor and len(tools) < 1000:
                page = await client.list_tools(cursor=page.next_cursor)
                tools += page.tools
            patience.reschedule(None)
            held.opened.set_result((client, tools))
            await held.leave.wait()
