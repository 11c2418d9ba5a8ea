"""What an MCP tool answers, as documents.

The protocol lets a tool answer in many shapes: structured content, text, JSON written as text, resources, links to
resources. Structured content is read first; where it holds no text, each block of the content is read.

>>> found = passages({"result": [{"id": 7, "text": "The key turns .", "metadata": {"year": 2024}}]}, "handbook")
>>> found[0].id, found[0].text, dict(found[0].metadata)
('handbook:7', 'The key turns .', {'year': 2024, 'source': 'handbook'})
>>> [document.text for document in passages('["one", "two"]', "notes")]
['one', 'two']
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

from fedrag.optional import require
from fedrag.types import Document

require("mcp", extra="mcp")

from mcp_types import (  # noqa: E402
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ResourceContents,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

MOST = 200
"""Documents read of one answer. Servers that know no limit may send all they have."""

_TEXTS = ("text", "page_content", "content", "passage", "chunk", "chunk_text")
_LISTS = ("result", "results", "documents", "hits", "sources", "items", "matches", "passages", "chunks", "data")
_LESSER_TEXTS = ("snippet", "body", "abstract", "summary", "description")  # what wraps a list of results may have them
_IDS = ("chunk_id", "id", "_id", "doc_id", "document_id")
_THEIRS = ("metadata", "meta")
_DEEPEST = 6  # levels of lists and objects inside each other


def documents(result: CallToolResult, source: str) -> list[Document]:
    """The documents of an answer, in its order; links to resources are not followed."""
    if result.structured_content is not None and (found := passages(result.structured_content, source)):
        return found
    return _unique(found for block in result.content for found in _block(block, source))


def links(result: CallToolResult) -> list[str]:
    """URIs of the resources that an answer links to."""
    return list(dict.fromkeys(block.uri for block in result.content if isinstance(block, ResourceLink)))


def resource(contents: Iterable[ResourceContents], source: str) -> list[Document]:
    """The texts of a resource that was read; what is no text is left out."""
    texts = [part for part in contents if isinstance(part, TextResourceContents) and part.text.strip()]
    return [Document(part.text, metadata={"source": source, "uri": part.uri}) for part in texts]


def passages(value: Any, source: str) -> list[Document]:
    """The documents in a JSON value: objects with a text, or strings, at any depth of wrapping.

    A document's id is the one that the object gives, after the source's name and a colon; else the hash of its text.
    Its metadata has the source's name as "source", what the object has under "metadata", and its other members; a
    "source" of its own is called "origin", and an "also" of its own is left out.
    """
    return _unique(_passages(value, source, 0))


def _passages(value: Any, source: str, depth: int) -> Iterator[Document]:
    if depth > _DEEPEST:
        return
    if isinstance(value, str):
        inner = _json(value)
        found = list(_passages(inner, source, depth + 1)) if inner is not None else []
        if not found and value.strip():
            found = [Document(value, metadata={"source": source})]
        yield from found
    elif isinstance(value, list):
        for one in cast(list[Any], value):
            yield from _passages(one, source, depth + 1)
    elif isinstance(value, dict):
        members = cast(dict[str, Any], value)
        if (text := _first(members, _TEXTS)) is not None:
            yield _document(members, text, source)
        elif isinstance(inner := members.get("document", members.get("node")), dict):  # a hit around its document
            yield from _passages({**members, "document": None, "node": None, **inner}, source, depth + 1)
        elif (name := next((name for name in _LISTS if name in members), None)) is not None:
            yield from _passages(members[name], source, depth + 1)
        elif (text := _first(members, _LESSER_TEXTS)) is not None:
            yield _document(members, text, source)
        elif len(lists := [one for one in members.values() if isinstance(one, list)]) == 1:
            yield from _passages(lists[0], source, depth + 1)


def _document(members: Mapping[str, Any], text: str, source: str) -> Document:
    own = next((name for name in _IDS if isinstance(one := members.get(name), (str, int)) and one != ""), None)
    metadata: dict[str, Any] = {
        name: one for name, one in members.items() if name not in (own, *_THEIRS) and one is not None and one != text
    }
    for name in _THEIRS:
        if isinstance(theirs := members.get(name), dict):
            metadata |= cast(dict[str, Any], theirs)
    if "source" in metadata:
        metadata["origin"] = metadata["source"]
    metadata.pop("also", None)  # the retriever says there who else found a text
    # no server may pass for another
    return Document(text, f"{source}:{members[own]}" if own else "", metadata | {"source": source})


def _block(block: ContentBlock, source: str) -> list[Document]:
    if isinstance(block, TextContent):
        return passages(block.text, source)
    return resource([block.resource], source) if isinstance(block, EmbeddedResource) else []


def _unique(found: Iterable[Document]) -> list[Document]:
    """No more than `MOST`; a text that shares its id with another one is known by its hash."""
    texts: dict[str, str] = {}
    return [
        document if texts.setdefault(document.id, document.text) == document.text else _by_hash(document)
        for document in islice(found, MOST)
    ]


def _by_hash(document: Document) -> Document:
    return Document(document.text, metadata=document.metadata)


def _first(members: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((one for name in names if isinstance(one := members.get(name), str) and one.strip()), None)


def _json(text: str) -> Any:
    """What a text says in JSON, if that is an object or a list."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
