"""An MCP server to search: where it is, which of its tools searches, and what that tool is called with.

Tool and parameters are read off what the server says of itself; whatever is not plain has to be named.

>>> source = MCPSource("handbook", "http://127.0.0.1:8000/mcp", token="secret")
>>> source
MCPSource(name='handbook', tool=None, query=None, timeout=30.0)
>>> schema = {"properties": {"question": {"type": "string"}, "limit": {"type": "integer", "maximum": 50}}}
>>> search(source, [Tool(name="search", input_schema=schema)]).arguments("Which key?", 80)
{'question': 'Which key?', 'limit': 50}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fedrag.errors import ConfigError
from fedrag.optional import require

require("mcp", extra="mcp")

from mcp import StdioServerParameters  # noqa: E402
from mcp.server import MCPServer  # noqa: E402
from mcp_types import Tool  # noqa: E402

_SEARCHING = ({"search", "retrieve", "retrieval"}, {"query", "find", "lookup"})  # words in a tool's name
_QUERIES = ("query", "q", "question", "text", "search", "searchquery", "searchterm", "querytext", "keywords", "prompt")
_COUNTS = ("topk", "k", "limit", "n", "numresults", "maxresults", "nresults", "count", "size", "pagesize", "num", "top")


@dataclass(frozen=True, eq=False)
class MCPSource:
    """An MCP server that is asked for documents.

    Args:
        name: what the source is called in ids, metadata, warnings and errors.
        target: a URL (streamable HTTP), the command of a server to start (stdio), or a server in this process.
        tool: the tool that searches; `None` finds it.
        query: the tool's parameter that takes the query; `None` finds it.
        arguments: further arguments of each call. They stay as they are.
        headers: sent with each request to a URL.
        token: sent to a URL as a bearer token. A URL itself may reach logs: put no secret into it.
        timeout: seconds to wait for the connection, and for each answer.

    Raises `ConfigError` for settings that cannot be.
    """

    name: str
    target: str | StdioServerParameters | MCPServer[Any] = field(repr=False)
    tool: str | None = field(default=None, kw_only=True)
    query: str | None = field(default=None, kw_only=True)
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any], kw_only=True, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], kw_only=True, repr=False)
    token: str | None = field(default=None, kw_only=True, repr=False)
    timeout: float = field(default=30.0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.name or ":" in self.name:
            raise ConfigError(
                f"name={self.name!r}: an MCP source needs a name, without a colon: its documents' ids begin with it "
                "and a colon"
            )
        if not 0 < self.timeout < float("inf"):
            raise ConfigError(f"timeout={self.timeout} of the MCP source {self.name!r}: it must be a number above 0")
        web = isinstance(self.target, str)
        if web and not re.match(r"https?://[^@/?#]+([/?#].*)?$", cast(str, self.target)):
            raise ConfigError(
                f"the target of the MCP source {self.name!r} must be an http:// or https:// address without a user or "
                "password in it; give those as headers= or token=, and a command as StdioServerParameters"
            )
        if (self.headers or self.token) and not web:
            raise ConfigError(f"headers= and token= of the MCP source {self.name!r} need a URL as its target")

    def sent(self) -> dict[str, str]:
        """The headers of each request to a URL."""
        return {**self.headers, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}


@dataclass(frozen=True, slots=True)
class Search:
    """A call that searches: the tool, its parameter of the query, and its parameter of the number of hits, if any."""

    tool: str
    query: str
    count: str | None
    most: int | None
    fixed: Mapping[str, Any] = field(repr=False)

    def arguments(self, query: str, count: int) -> dict[str, Any]:
        """The arguments that ask for `count` documents, or for as many as the tool allows."""
        asked = {self.count: count if self.most is None else min(count, self.most)} if self.count else {}
        return {self.query: query, **asked, **self.fixed}


def search(source: MCPSource, tools: Sequence[Tool]) -> Search:
    """Find the tool that searches, and its parameters. Raises `ConfigError`, which names what there is to choose."""
    tool = _tool(source, tools)
    schema = tool.input_schema
    parameters: dict[str, Any] = schema.get("properties", {})
    query = _query(source, tool.name, parameters, schema.get("required", []))
    count = next(
        (name for key in _COUNTS for name in parameters if _plain(name) == key and _counts(parameters[name])), ""
    )
    missing = set(schema.get("required", [])) - {query, count, *source.arguments}
    if missing:
        raise ConfigError(
            f"the tool {tool.name!r} of the MCP source {source.name!r} needs {_listed(missing)} too: pass arguments="
        )
    known = count and count not in source.arguments
    return Search(
        tool.name, query, count if known else None, _most(parameters[count]) if known else None, source.arguments
    )


def _tool(source: MCPSource, tools: Sequence[Tool]) -> Tool:
    names = [tool.name for tool in tools]
    if source.tool is not None:
        found = [tool for tool in tools if tool.name == source.tool]
    else:
        words = [set(re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+", " ", name).lower().split()) for name in names]
        alike = ([tool for tool, own in zip(tools, words, strict=True) if own & wanted] for wanted in _SEARCHING)
        found = list(tools) if len(tools) == 1 else next((some for some in alike if some), [])
    if len(found) != 1:
        wanted = "is not plain" if source.tool is None else f"cannot be {source.tool!r}"
        raise ConfigError(
            f"which tool of the MCP source {source.name!r} searches {wanted}; it has {_listed(names)}: pass tool="
        )
    return found[0]


def _query(source: MCPSource, tool: str, parameters: Mapping[str, Any], required: Sequence[str]) -> str:
    free = [name for name, schema in parameters.items() if name not in source.arguments and _takes(schema, "string")]
    if source.query is not None:
        found = [source.query] if source.query in parameters else []
    else:
        needed = [name for name in free if name in required]
        # a name that says it, among those that must be given; else the only one that must; else a name that says it
        choices = (
            [name for name in needed if _plain(name) in _QUERIES],
            needed,
            [n for n in free if _plain(n) in _QUERIES],
        )
        found = next((some for some in choices if some), [])
    if len(found) != 1:
        wanted = "is not plain" if source.query is None else f"cannot be {source.query!r}"
        raise ConfigError(
            f"which parameter of the tool {tool!r} of the MCP source {source.name!r} takes the query {wanted}; "
            f"it has {_listed(found or parameters)}: pass query="
        )
    return found[0]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _options(schema: Any) -> list[Mapping[str, Any]]:
    """A parameter's schema, or the alternatives it lists."""
    if not isinstance(schema, dict):
        return []
    own = cast(dict[str, Any], schema)
    return cast(list[Mapping[str, Any]], own.get("anyOf") or own.get("oneOf") or [own])


def _takes(schema: Any, kind: str) -> bool:
    """Whether any value of this type will do: one of a fixed set is no query. Without a type, a string will."""
    for one in _options(schema):
        kinds = one.get("type", None if "$ref" in one else "string")
        if (kinds == kind or (isinstance(kinds, list) and kind in kinds)) and not {"enum", "const"} & set(one):
            return True
    return False


def _counts(schema: Any) -> bool:
    return _takes(schema, "integer") or _takes(schema, "number")


def _most(schema: Any) -> int | None:
    bounds = [int(one["maximum"]) for one in _options(schema) if isinstance(one.get("maximum"), (int, float))]
    return max(1, min(bounds)) if bounds else None


def _listed(names: Sequence[str] | Mapping[str, Any] | set[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
