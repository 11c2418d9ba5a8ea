"""How a document lies in the payload of a Qdrant point: in fedrag's way, or in that of the library that wrote it.

| layout | text | metadata | id |
|---|---|---|---|
| langchain-qdrant, and fedrag | `page_content` | `metadata` | the point's |
| qdrant-haystack | `content` | `meta` | `id` |
| llama-index-vector-stores-qdrant | in `_node_content` | there, and beside it for filters | the point's |
| any other, given its `text_key` | `text_key` | all other keys | the point's |

Qdrant takes numbers and UUIDs as ids; any other string becomes the UUID that qdrant-haystack would give it. What fedrag
adds, the original id among it, goes under the key `_fedrag`, which the other libraries pass over. qdrant-haystack
would not, so that in its layout there is none.

>>> LANGCHAIN.read(7, {"page_content": "Paris", "metadata": {"year": 1}})
Document(text='Paris', id='7', metadata={'year': 1}, media=())
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID, uuid5

from fedrag.errors import InputError, StoreError
from fedrag.types import Document, Media

KEY = "_fedrag"
"""Where fedrag keeps its own: in a payload the id, the order and the media, in a collection's metadata less."""

Payload = Mapping[str, Any]
PointId = int | str | UUID

_NAMESPACE = UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d")  # qdrant-haystack's
_NODE, _NODE_KEYS = "_node_content", {"_node_content", "_node_type", "document_id", "doc_id", "ref_doc_id"}


def point_ids(id: str) -> list[int | str]:
    """Return the ids that the point of a document may have, the one that it gets when it is new first."""
    found: list[int | str] = [str(uuid5(_NAMESPACE, id))]
    if id.isascii() and id.isdecimal() and len(id) <= 20:
        found.append(int(id))
    with suppress(ValueError):
        found.append(str(UUID(id)))
    return found


class Layout(Protocol):
    """One way of keeping documents in payloads."""

    def read(self, point: PointId, payload: Payload) -> Document:
        """Return the document. Raises `StoreError` for a payload of another layout."""
        ...

    def write(self, document: Document, order: int) -> dict[str, Any]:
        """Return the payload of a new document; `order` grows from one to the next."""
        ...

    def paths(self, field: str) -> list[str]:
        """Return the JSON paths at which a metadata field may lie; none where a filter cannot reach it."""
        ...


@dataclass(frozen=True, slots=True)
class Columns:
    """Text and metadata under keys of their own; without `metadata` all other keys are the metadata."""

    text: str
    metadata: str | None = None
    id: str | None = None

    def read(self, point: PointId, payload: Payload) -> Document:
        """Return the document. Raises `StoreError` for a payload of another layout."""
        if self.text not in payload or (self.id is not None and self.id not in payload):
            raise _unlike(point, payload, self.text)
        if self.metadata is None:
            metadata = {key: value for key, value in payload.items() if key not in (self.text, KEY)}
        else:
            metadata = payload.get(self.metadata) or {}
        own = payload.get(KEY) or {}
        id = payload[self.id] if self.id is not None else own.get("id", str(point))
        media = tuple(Media(base64.b64decode(item["data"]), item["mime"]) for item in own.get("media", ()))
        return Document(payload[self.text] or "", id, metadata, media)

    def write(self, document: Document, order: int) -> dict[str, Any]:
        """Return the payload of a new document."""
        metadata = dict(document.metadata)
        if self.id is not None:
            _refuse_media(document, "qdrant-haystack")
            return {self.id: document.id, self.text: document.text, self.metadata or "meta": metadata}
        if self.metadata is not None:
            return {self.text: document.text, self.metadata: metadata, KEY: _own(document, order)}
        if taken := {self.text, KEY} & set(metadata):
            raise InputError(
                f"the metadata of document {document.id!r} has the key {taken.pop()!r}, which holds something else in "
                "the payloads of this collection: rename it"
            )
        return {**metadata, self.text: document.text, KEY: _own(document, order)}

    def paths(self, field: str) -> list[str]:
        """Return the JSON paths at which a metadata field may lie."""
        return _paths([] if self.metadata is None else [self.metadata], field)


@dataclass(frozen=True, slots=True)
class Nodes:
    """LlamaIndex's nodes, as JSON under one key, with their metadata beside it for filters."""

    def read(self, point: PointId, payload: Payload) -> Document:
        """Return the document, whose text is what LlamaIndex embeds: the node's metadata, if not excluded, and text."""
        if _NODE not in payload:
            raise _unlike(point, payload, _NODE)
        node: dict[str, Any] = json.loads(payload[_NODE])
        metadata: dict[str, Any] = node.get("metadata") or {}
        text = node.get("text") or (node.get("text_resource") or {}).get("text") or ""
        shown = [key for key in metadata if key not in node.get("excluded_embed_metadata_keys", ())]
        template = node.get("metadata_template", "{key}: {value}")
        separator = node.get("metadata_separator", node.get("metadata_seperator", "\n"))
        above = separator.join(template.format(key=key, value=str(metadata[key])) for key in shown).strip()
        if above:
            whole = node.get("text_template", "{metadata_str}\n\n{content}")
            text = whole.format(metadata_str=above, content=text).strip()
        return Document(text, (payload.get(KEY) or {}).get("id", str(point)), metadata)

    def write(self, document: Document, order: int) -> dict[str, Any]:
        """Return the payload of a new document: a node of which the text alone is embedded."""
        _refuse_media(document, "llama-index-vector-stores-qdrant")
        metadata = dict(document.metadata)
        node = {
            "id_": document.id,
            "metadata": metadata,
            "excluded_embed_metadata_keys": list(metadata),
            "text": document.text,
            "class_name": "TextNode",
        }
        unknown = dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), "None")
        about = {_NODE: json.dumps(node), "_node_type": "TextNode", KEY: _own(document, order)}
        return {**metadata, **unknown, **about}

    def paths(self, field: str) -> list[str]:
        """Return the JSON paths at which a metadata field may lie."""
        return [] if _NODE_KEYS & {field, field.split(".")[0]} else _paths([], field)


LANGCHAIN = Columns("page_content", "metadata")
HAYSTACK = Columns("content", "meta", id="id")
NODES = Nodes()


def layout_of(payload: Payload) -> Layout:
    """Tell who wrote a payload. Raises `InputError`, which names its keys, when that is none of the known ones."""
    if _NODE in payload:
        return NODES
    if "page_content" in payload:
        return LANGCHAIN
    if {"id", "content", "meta"} <= set(payload):
        return HAYSTACK
    raise InputError(
        f"the collection's payloads have the keys {sorted(payload)}, which is no layout of LlamaIndex, LangChain or "
        "Haystack: say under which key the text is, with text_key=..."
    )


def _own(document: Document, order: int) -> dict[str, Any]:
    media = [{"data": base64.b64encode(item.data).decode(), "mime": item.mime} for item in document.media]
    return {"id": document.id, "order": order} | ({"media": media} if media else {})


def _paths(inside: list[str], field: str) -> list[str]:
    """The path into nested metadata, and that of one key with the dots in it."""
    name = field.removeprefix("meta.")
    if '"' in name or not all(name.split(".")):
        return []
    ways = {(*inside, *name.split(".")), (*inside, name)}
    return sorted(".".join(f'"{key}"' for key in way) for way in ways)


def _refuse_media(document: Document, writer: str) -> None:
    if document.media:
        raise InputError(
            f"document {document.id!r} has media, for which the payloads of {writer} have no place here: keep it in a "
            "collection of its own"
        )


def _unlike(point: PointId, payload: Payload, wanted: str) -> StoreError:
    return StoreError(
        f"the payload of point {point} has the keys {sorted(payload)}, and not {wanted!r} as the first one of the "
        "collection: keep documents of one layout in a collection"
    )
