"""A system as an MCP server: assistants search its documents, ask it, and read a document whole.

    mcp_server(Served(rag, name="handbook")).run("stdio")

It has the tools `search` and, with a generator, `ask`, which reports its pieces as progress while they are written; and
`document://{id}`, for ids as `search` gives them, percent-encoded. Nothing that it offers changes anything. What a
caller got wrong comes back as the tool's error, which names the value; of other errors only that they happened.

>>> import asyncio
>>> from fedrag import LexicalRetriever, Document, RAGSystem
>>> from mcp import Client
>>> documents = [Document("Paris is the capital of France.", id="p"), Document("Rome is old.", id="r")]
>>> async def ask() -> object:
...     rag = RAGSystem(retriever=LexicalRetriever(documents))
...     async with Client(mcp_server(Served(rag, name="capitals"))) as client:
...         found = await client.call_tool("search", {"query": "What is the capital of France?", "top_k": 1})
...         return [source["id"] for source in found.structured_content["result"]]
>>> asyncio.run(ask())
['p']
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Any

from pydantic import BaseModel, Field

from fedrag.errors import InputError, StoreError
from fedrag.optional import require
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.nested import find
from fedrag.serving.discreet import log_to_stderr, log_unchanged
from fedrag.serving.served import Busy, Served
from fedrag.types import Hit

require("mcp", extra="mcp")

from mcp.server import MCPServer  # noqa: E402
from mcp.server.mcpserver import Context, ResourceSecurity  # noqa: E402
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError  # noqa: E402
from mcp_types import ToolAnnotations  # noqa: E402

_FILTER = (
    'Only documents whose metadata match: a comparison such as {"field": "year", "operator": ">=", "value": 2020}, '
    'with one of == != > >= < <= in "not in" exists, or several: {"operator": "AND", "conditions": [...]}; also OR.'
)

Query = Annotated[str, Field(min_length=1, max_length=10_000, description="What to look for, in plain words.")]
Question = Annotated[str, Field(min_length=1, max_length=10_000, description="The question, in plain words.")]
TopK = Annotated[int | None, Field(ge=1, le=100, description="How many documents; left out, the system's own number.")]
Filter = Annotated[dict[str, Any] | None, Field(description=_FILTER)]


class Source(BaseModel):
    """A document that was found."""

    id: str = Field(description="Read it whole as document://ID, with the id percent-encoded.")
    text: str
    score: float = Field(description="The retriever's; higher is better, comparable within one answer.")
    metadata: dict[str, Any]


class Grounded(BaseModel):
    """An answer and the documents it was written from."""

    answer: str
    sources: list[Source] = Field(description="What was found for the question, best first.")


def mcp_server(served: Served) -> MCPServer[Any]:
    """Return a server for any transport. It keeps nothing between requests, so several processes can serve as one."""
    name = served.name
    with log_unchanged():
        server = MCPServer[Any](name, instructions=f"Finds passages in the documents of {name!r}.", log_level="WARNING")
    hints = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

    async def search(query: Query, top_k: TopK = None, where: Filter = None) -> list[Source]:
        with _told():
            return _sources(await served.retrieve(query, k=top_k, where=where))

    async def ask(question: Question, context: Context, top_k: TopK = None, where: Filter = None) -> Grounded:
        with _told():
            reply = await served.answer([{"role": "user", "content": question}], k=top_k, where=where)
            written: list[str] = []
            try:
                async for piece in reply.pieces:
                    written.append(piece)
                    await context.report_progress(len(written), reply.limit, piece)
            finally:
                reply.close()  # who cancels stops the writing
            return Grounded(answer="".join(written), sources=_sources(reply.hits))

    server.add_tool(
        search,
        title=f"Search {name}",
        description=f"Find the passages of {name!r} that fit a query best, best first, with ids, scores and metadata.",
        annotations=hints,
    )
    if served.answers:
        server.add_tool(
            ask,
            title=f"Ask {name}",
            description=f"Answer a question from the documents of {name!r}: the answer, and the passages found for it.",
            annotations=hints,
        )
    if find(served.rag.retriever, DenseRetriever) is not None:

        async def document(id: str) -> str:
            with _told(ResourceError):
                found = await served.document(id)
            if found is None:
                raise ResourceNotFoundError(f"there is no document {id!r}; ids are those that the tool 'search' gives")
            return found.text

        server.resource(
            "document://{id}",
            title=f"A document of {name}",
            description="The whole text of a document, by its id, percent-encoded.",
            security=ResourceSecurity(exempt_params={"id"}),  # it is looked up in a store, and no path
        )(document)
    return server


def run_stdio(served: Served) -> None:
    """Serve on stdin and stdout until stdin ends. What the process prints meanwhile goes to stderr."""
    log_to_stderr()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is printed must not wait until stdout is stdout again
    mcp_server(served).run("stdio")


def _sources(hits: Sequence[Hit]) -> list[Source]:
    return [
        Source(id=hit.document.id, text=hit.document.text, score=hit.score, metadata=dict(hit.document.metadata))
        for hit in hits
    ]


@contextmanager
def _told(kind: type[ToolError | ResourceError] = ToolError) -> Generator[None]:
    """Let callers know what they can mend."""
    try:
        yield
    except (InputError, Busy) as error:
        raise kind(str(error)) from None
    except StoreError:  # its message may have a path, or an address
        raise kind("the documents cannot be searched now: whoever runs this server has to index them anew") from None
