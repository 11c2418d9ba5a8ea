"""What the Haystack components of fedrag share: where a system comes from, documents and filters of either library.

A component holds the folder of a saved system and opens it on first use, so that a pipeline with it is a piece of YAML.
Components of one folder share one system. A live system serves too, in a pipeline that is not to be saved.

>>> where({"field": "meta.year", "operator": "!=", "value": 2020})["operator"]  # Haystack: what has no year is not 2020
'OR'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

from fedrag import durable
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import InputError
from fedrag.filters import compile_filter
from fedrag.optional import require
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document, Media, Where

require("haystack", extra="haystack")

import haystack  # noqa: E402
from haystack.dataclasses import ByteStream  # noqa: E402
from haystack.errors import FilterError  # noqa: E402

CONTENT = "haystack_content"
"""The metadata key of a document's content, where another text than the content is embedded."""

_opened: WeakValueDictionary[Path, RAGSystem] = WeakValueDictionary()


class Source:
    """Where a component has its system from: the folder of a saved one, opened on first use, or a live one.

    The folder of a saved encoder serves embedders: they need no more.
    """

    def __init__(self, system: RAGSystem | str | Path) -> None:
        self.given = system

    @cached_property
    def rag(self) -> RAGSystem:
        """The system; the same object for all that name the same folder. Raises what `RAGSystem.load` raises."""
        if isinstance(self.given, RAGSystem):
            return self.given
        folder = Path(self.given)
        if (folder / "modules.json").is_file():  # what sentence-transformers writes
            return RAGSystem(retriever=DenseRetriever(SentenceEncoder.load(folder), MemoryStore()))
        version = durable.current(folder).resolve()
        rag = _opened.get(version) or RAGSystem.load(self.given)
        return _opened.setdefault(version, rag)

    @property
    def path(self) -> str:
        """The folder, for YAML. Raises `InputError` for a live system."""
        if isinstance(self.given, RAGSystem):
            raise InputError(
                "this component holds a live RAGSystem, which cannot be written as YAML: rag.save(folder), or, for an "
                "embedder, rag.dense.encoder.save(folder), and make the component from that folder"
            )
        return str(self.given)


def embedded_text(embedder: Any, document: haystack.Document) -> str:
    """The text that a document embedder embeds: metadata fields and content, between its prefix and suffix."""
    names: list[str] = getattr(embedder, "meta_fields_to_embed", None) or []
    values = [str(document.meta[name]) for name in names if document.meta.get(name) is not None]
    separator: str = getattr(embedder, "embedding_separator", "\n")
    text = separator.join([*values, document.content or ""])
    return getattr(embedder, "prefix", "") + text + getattr(embedder, "suffix", "")


def from_haystack_document(document: haystack.Document, text: str | None = None) -> Document:
    """A document of Haystack as one of fedrag, under its id, with `text` or else its content to be embedded.

    Metadata becomes plain JSON, with dates as ISO strings and anything else as its string. Of a blob the bytes and the
    MIME type are kept.
    """
    content, blob = document.content or "", document.blob
    metadata = cast(dict[str, Any], json.loads(json.dumps(document.meta, default=_as_text)))
    if text is not None and text != content:
        metadata[CONTENT] = content
    media = () if blob is None else (Media(blob.data, blob.mime_type or ""),)
    return Document(content if text is None else text, document.id, metadata, media)


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def to_haystack_document(document: Document, *, score: float | None = None) -> haystack.Document:
    """A document of fedrag as one of Haystack: same id, its content, metadata and first image or sound."""
    meta = dict(document.metadata)
    content: str = meta.pop(CONTENT, document.text)
    media = document.media[0] if document.media else None
    blob = media and ByteStream(media.data, mime_type=media.mime or None)
    return haystack.Document(id=document.id, content=content, meta=meta, blob=blob, score=score)


def where(filters: Mapping[str, Any] | None) -> Where | None:
    """A filter of Haystack as one of fedrag: to Haystack, a field that is not there is `None`.

    Dates are compared as the ISO strings that they are, so all of a field should be written alike. The fields are those
    of `meta`. Raises Haystack's `FilterError`.
    """
    if not filters:
        return None
    try:
        ours = _translated(filters)
        compile_filter(ours)
    except InputError as error:
        raise FilterError(str(error)) from error
    return ours


def _translated(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part  # compile_filter says what is wrong with it
    one = dict(cast(Mapping[str, Any], part))
    if isinstance(conditions := one.get("conditions"), list):
        return {**one, "conditions": [_translated(condition) for condition in cast(list[Any], conditions)]}
    if "value" not in one:
        return one
    field, name, value = one.get("field"), one.get("operator"), one["value"]
    if field in {own.name for own in fields(haystack.Document)}:
        raise FilterError(f"fedrag filters by metadata, got the field {field!r}; name one of meta.…")
    if name in (">", ">=", "<", "<="):
        if value is None:
            return {**one, "operator": "in", "value": []}  # nothing is in an order with None
        one["value"] = value.isoformat() if isinstance(value, datetime) else _date(value)
    if name in ("in", "not in") and not isinstance(value, list):
        raise FilterError(f"the operator {name!r} takes a list, got a {type(value).__name__}")
    among = name in ("in", "not in") and None in cast(list[Any], value)
    absent = {"==": value is None, "!=": value is not None, "in": among, "not in": not among}
    if not absent.get(cast(str, name)):
        return one
    missing = {"field": field, "operator": "exists", "value": False}
    return {"operator": "OR", "conditions": [one, missing]}


def _date(value: Any) -> Any:
    """The value, unless it is a string without an order: Haystack orders none but dates."""
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise FilterError(f"of strings only ISO dates are in an order, got {value!r}") from None
    return value
