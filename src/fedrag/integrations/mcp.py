"""Knowledge behind MCP servers, as a retriever: any number of servers, asked together, ranked together.

    retriever = MCPRetriever(
        MCPSource("handbook", "https://handbook.example.org/mcp", token=token),
        MCPSource("tickets", StdioServerParameters(command="tickets-mcp"), arguments={"project": "ada"}),
        rerank=encoder,
    )
    RAGSystem(retriever=retriever, generator=generator)

Every server is connected to once, with the first question, and again only when the connection broke; `close()`, or
leaving the `with` block, ends the servers that were started. The tool that searches and its parameters are found from
what each server says of itself (`mcp_source`). A source that fails is left out, with a warning; when none answers, that
is a `StoreError`. Nothing that a server says when it fails is repeated, nor what its process
writes to stderr, and no header, token or command.

>>> server = MCPServer("notes")
>>> @server.tool()
... def search(query: str) -> list[str]:
...     return [f"All about {query} .", "Rome is old ."]
>>> with MCPRetriever(MCPSource("notes", server)) as retriever:
...     [hit.document.text for hit in retriever.retrieve(["keys"], k=5)[0]]
['All about keys .', 'Rome is old .']
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from types import TracebackType

from fedrag.errors import ConfigError, InputError, StoreError
from fedrag.filters import compile_filter
from fedrag.integrations.mcp_source import MCPSource
from fedrag.integrations.mcp_thread import CLOSED, Found, Loop
from fedrag.objectives.cross_encoder import Judge, PairScorer
from fedrag.ops.similarity import all_pairs
from fedrag.optional import require
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document, Encoder, Hit, Where

require("mcp", extra="mcp")

from mcp import StdioServerParameters as StdioServerParameters  # noqa: E402
from mcp.server import MCPServer as MCPServer  # noqa: E402

_FUSION = 60  # Cormack et al. 2009, "Reciprocal rank fusion": 1 / (60 + rank), summed over the lists


class MCPRetriever:
    """Find documents by asking MCP servers.

    A document's metadata has the name of its "source"; a text that several sources found comes once, from the first of
    them, and "also" names the others.

    Args:
        sources: the servers; each needs its own name.
        rerank: what scores the documents found: an encoder (inner product; take your system's own), or a cross-encoder,
            that is an object with `predict`. `None` ranks by reciprocal rank fusion: by the places in the servers' own
            lists alone, which says nothing of how good a list is.
        fetch: documents asked of each server at least, where its tool takes a number: more than k, so that there is
            something to rank, and something left after a filter.

    `retrieve` and `aretrieve` may be called from any thread. A filter is applied here, to the metadata of what the
    servers found: documents that they did not return cannot match it.
    """

    def __init__(self, *sources: MCPSource, rerank: Encoder | Judge | None = None, fetch: int = 20) -> None:
        names = [source.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"MCPRetriever takes one source or more, each with its own name, got {names}")
        if fetch < 1:
            raise ConfigError(f"fetch={fetch}: it must be at least 1")
        self.sources = sources
        encodes = isinstance(rerank, Encoder)
        self._dense = DenseRetriever(rerank, MemoryStore()) if encodes else None  # embeds in batches, without dropout
        self._pairs = None if encodes or rerank is None else PairScorer(rerank)
        self.fetch = fetch
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._loop: Loop | None = None
        self._end: weakref.finalize[..., MCPRetriever] | None = None

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return up to k hits per query, best first, over all sources.

        Raises:
            ConfigError: if a server's tool or its parameters cannot be told; names the setting that does.
            StoreError: if no source answered.
        """
        _check(queries, k, where)
        future = self._open().ask(list(queries), max(k, self.fetch))
        try:
            found = future.result()
        except CancelledError:
            raise StoreError(CLOSED) from None
        finally:
            future.cancel()  # interrupted here, it need not go on there
        return self._ranked(queries, found, k, where)

    async def aretrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """`retrieve`, for an event loop; cancelling it cancels the questions."""
        _check(queries, k, where)
        future = self._open().ask(list(queries), max(k, self.fetch))
        try:
            found = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise StoreError(CLOSED) from None
        return await asyncio.to_thread(self._ranked, queries, found, k, where)

    def close(self) -> None:
        """End all connections and the servers that were started, and what is asked meanwhile, with a `StoreError`.

        The next question opens them again.
        """
        self._forget()
        with self._lock:
            end, self._end, self._loop = self._end, None, None
        if end is not None:
            end()

    def __enter__(self) -> MCPRetriever:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> Loop:
        """The event loop with its connections, none of which is open before the first question."""
        self._forget()
        with self._lock:
            if self._loop is None:
                self._loop = Loop(self.sources)
                # also when nobody closes it: with the object, or with the process
                self._end = weakref.finalize(self, self._loop.end)
            return self._loop

    def _forget(self) -> None:
        """In a forked child, leave the connections to the parent: the thread that holds them is there alone."""
        if self._pid != os.getpid():
            self._lock, self._end, self._loop, self._pid = threading.Lock(), None, None, os.getpid()

    def _ranked(self, queries: Sequence[str], found: list[Found], k: int, where: Where | None) -> list[list[Hit]]:
        """The k best hits per query, of each source's documents per query."""
        self._check_answers(found, len(queries))
        keep = None if where is None else compile_filter(where)
        rows: list[list[Hit]] = []
        for answers in zip(*found, strict=True):
            fused: dict[str, _Fused] = {}
            for source, answer in zip(self.sources, answers, strict=True):
                for rank, document in enumerate(answer if isinstance(answer, list) else [], start=1):
                    if keep is None or keep(document.metadata):
                        fused.setdefault(document.text.strip(), _Fused(document)).add(source.name, rank)
            rows.append([one.hit() for one in fused.values()])
        if any(rows):
            rows = self._scored(queries, rows)
        return [sorted(row, key=lambda hit: -hit.score)[:k] for row in rows]

    def _scored(self, queries: Sequence[str], rows: list[list[Hit]]) -> list[list[Hit]]:
        """The same documents with the reranker's scores."""
        if self._dense is not None:
            unique = {hit.document.text: hit.document for row in rows for hit in row}
            documents = self._dense.embed_documents(list(unique.values()))
            table = all_pairs(self._dense.embed_queries(queries), documents).tolist()  # n lists of as many as unique
            found = [dict(zip(unique, scores, strict=True)) for scores in table]
            return [
                [Hit(hit.document, scores[hit.document.text]) for hit in row]
                for row, scores in zip(rows, found, strict=True)
            ]
        if self._pairs is not None:
            asked = [query for query, row in zip(queries, rows, strict=True) for _ in row]
            scores = iter(self._pairs.logprobs(asked, [hit.document.text for row in rows for hit in row]).tolist())
            return [[Hit(hit.document, next(scores)) for hit in row] for row in rows]
        return rows

    def _check_answers(self, found: list[Found], n: int) -> None:
        """Warn of each source that failed; raise `StoreError` where a query has no answer from any."""
        errors = [[answer for answer in answers if isinstance(answer, Exception)] for answers in found]
        if any(all(isinstance(answer, Exception) for answer in answers) for answers in zip(*found, strict=True)):
            faults = [f"{one.name}: {_kind(own[0])}" for one, own in zip(self.sources, errors, strict=True) if own]
            raise StoreError(
                f"no MCP source answered ({', '.join(faults)}): look whether the servers run, and whether addresses, "
                "commands and tokens are right"
            )
        for source, own in zip(self.sources, errors, strict=True):
            if own:
                what = f"the MCP source {source.name!r} was left out for {len(own)} of {n} queries: {_kind(own[0])}"
                warnings.warn(what, RuntimeWarning, stacklevel=4)


class _Fused:
    """A text, the first document that had it, and who found it at which place."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.places: dict[str, int] = {}

    def add(self, source: str, rank: int) -> None:
        self.places.setdefault(source, rank)  # twice in one list: the better place counts

    def hit(self) -> Hit:
        _, *others = self.places
        metadata = {**self.document.metadata, **({"also": others} if others else {})}
        score = sum(1 / (_FUSION + rank) for rank in self.places.values())
        return Hit(replace(self.document, metadata=metadata), score)


def _check(queries: Sequence[str], k: int, where: Where | None) -> None:
    if isinstance(queries, str):
        raise InputError("retrieve() takes a list of queries, got one string: wrap it in a list")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if where is not None:
        compile_filter(where)  # a wrong one is said before anybody is asked


def _kind(error: BaseException) -> str:
    """The class of a failure, and nothing of what it says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
