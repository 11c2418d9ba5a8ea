"""The table of a `PgVectorStore`: how it is made, what its columns hold, and the notes kept beside it.

A table that is made here has the columns `id`, `text`, `metadata`, `media` and `embedding`, for anybody's SQL, and
`place`, which is the order. PostgreSQL keeps no NUL character in a text, and `jsonb` changes some numbers: such a text
is escaped behind a mark, and such metadata is a JSON string that holds the JSON.

A table that was there is read and written in the columns that it is told (`Columns`), and otherwise left as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import local
from typing import Any, LiteralString, cast

from fedrag.errors import InputError, StaleIndexError, StoreError
from fedrag.integrations.pgvector_database import Connection, wait_for
from fedrag.integrations.pgvector_text import escaped, holdable, plainly
from fedrag.optional import require
from fedrag.types import Document, Media

require("psycopg", extra="pgvector")

import psycopg.errors  # noqa: E402
from psycopg.sql import SQL, Composable, Composed, Identifier, Literal  # noqa: E402

_OWN = ("id", "text", "metadata", "media", "embedding", "place")
_CHANGED = re.compile(r"\\u0000|\d[eE]\+")  # jsonb refuses the one, and writes the other as an integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a table that was there. `id` needs a unique index; `metadata` is `jsonb`, `vector` pgvector's."""

    id: str = "id"
    text: str = "text"
    vector: str = "embedding"
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """A table as it is now: the type of its ids, and the width of its vectors where their column has one."""

    type: SQL
    width: int | None


class PgTable:
    """A table by its name; it may not be there yet."""

    def __init__(self, schema: str, name: str, columns: Columns | None) -> None:
        chosen = columns or Columns(metadata="metadata")
        names = [schema, name, chosen.id, chosen.text, chosen.vector, *([chosen.metadata] if chosen.metadata else [])]
        for one in names:
            if not one or "%" in one or not holdable(one) or len(one.encode()) > 63:  # it would be cut off there
                raise InputError(f"{one!r} cannot name anything here: leave out % and NUL, and use at most 63 bytes")
        self.schema, self.name, self.own, self.full = schema, name, columns is None, f"{schema}.{name}"
        self._columns = chosen
        whose = sha256(f"{name}\0{chosen.vector}".encode()).hexdigest()
        self._seen = local()  # for each thread, the fingerprint that it noted or saw last
        self._parts: dict[str, Composable] = {
            "table": Identifier(schema, name),
            "side": Identifier(schema, f"fedrag_rebuild_{whose[:16]}"),
            "notes": Identifier(schema, "fedrag_stores"),
            "key": SQL("{}, {}").format(name, chosen.vector),
            "text_name": Literal(chosen.text),
            "id": Identifier(chosen.id),
            "text": Identifier(chosen.text),
            "vector": Identifier(chosen.vector),
            # with the table's name, for "id::text" in a SELECT is called "id", too
            "order": Identifier(schema, name, "place" if self.own else chosen.id),
            "media": Identifier("media") if self.own else SQL("NULL::bytea[]"),
            "metadata": SQL("'{{}}'::jsonb").format(),
        }
        if chosen.metadata is not None:
            self._parts["about"] = Identifier(chosen.metadata)
            self._parts["metadata"] = self.sql("COALESCE({about}::jsonb, '{{}}')")
        self._parts["document"] = self.sql("{id}::text, COALESCE({text}::text, ''), {metadata}, {media}")

    def sql(self, text: LiteralString, **more: Composable) -> Composed:
        """Put the names of this table in the place of `{table}`, `{id}`, `{text}`, `{vector}`, ..."""
        return SQL(text).format(**self._parts, **more)

    def run(
        self, connection: Connection, text: LiteralString, values: Sequence[Any] = (), **more: Composable
    ) -> psycopg.Cursor[Any]:
        """Execute a statement, into which the names of this table are put; what it gives is read in binary."""
        return connection.execute(self.sql(text, **more), values, binary=True)

    def shape(self, connection: Connection) -> Shape | None:
        """Return what the table is like; `None` where there is none. Raises `InputError` for one that cannot serve."""
        found = connection.execute(
            "SELECT attname, format_type(atttypid, -1), atttypmod, EXISTS (SELECT FROM pg_index WHERE indrelid = "
            "attrelid AND indisunique AND indimmediate AND indpred IS NULL AND indnkeyatts = 1 "
            "AND indkey[0] = attnum), attnotnull FROM pg_attribute WHERE attrelid = "
            "to_regclass(format('%%I.%%I', %s::text, %s::text)::text) AND attnum > 0 AND NOT attisdropped",
            [self.schema, self.name],
        ).fetchall()
        if not found:
            return None
        kinds = {name: rest for name, *rest in found}
        it = self._columns
        wanted = _OWN if self.own else [name for name in (it.id, it.text, it.vector, it.metadata) if name]
        if missing := [name for name in wanted if name not in kinds]:
            raise InputError(
                f"the table {self.full} has no column {missing[0]!r}, but {sorted(kinds)}: name its columns, "
                "columns=Columns(id=..., text=..., vector=..., metadata=...)"
            )
        id_type, _, unique, never_null = kinds[it.id]
        vector_type, size, _, _ = kinds[it.vector]
        if not (unique and never_null):
            raise InputError(
                f"the column {it.id!r} of {self.full} may hold one id twice, if only for a while, or none; "
                f'run: ALTER TABLE {self.full} ADD PRIMARY KEY ("{it.id}")'
            )
        if vector_type.rpartition(".")[2] != "vector":
            raise InputError(f"the column {it.vector!r} of {self.full} is of type {vector_type}; it must be a vector")
        return Shape(SQL(cast(LiteralString, id_type)), size if size > 0 else None)

    def width(self, connection: Connection) -> int | None:
        """Return how wide the vectors are; `None` where there is none."""
        if self.shape(connection) is None:
            return None
        query = "SELECT vector_dims({vector}) FROM {table} WHERE {vector} IS NOT NULL LIMIT 1"
        return next((width for (width,) in self.run(connection, query)), None)

    def create(self, connection: Connection, width: int) -> Shape:
        """Make the table. Raises `InputError` where the columns say that one should have been there."""
        if not self.own:
            raise InputError(f"there is no table {self.full}; leave out columns= to have one made")
        self.run(
            connection,
            'CREATE TABLE {table} (id text COLLATE "C" PRIMARY KEY, text text NOT NULL, metadata jsonb NOT NULL, '
            "media bytea[] NOT NULL, embedding vector({width}) NOT NULL, "
            "place bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY)",
            width=Literal(width),
        )
        return Shape(SQL("text"), width)

    def widen(self, connection: Connection, width: int) -> None:
        """Give the column of vectors another width; all are nought until they are replaced."""
        change = "ALTER TABLE {table} ALTER COLUMN {vector} TYPE vector({width}) USING {zeros}::vector"
        self.run(connection, change, width=Literal(width), zeros=SQL("array_fill(0::real, ARRAY[{}])").format(width))

    def count(self, connection: Connection) -> int:
        """Count the documents."""
        query = "SELECT count(*) FROM {table}" if self.shape(connection) is not None else "SELECT 0"
        return self.run(connection, query).fetchall()[0][0]

    def notes(self, connection: Connection) -> tuple[str, str]:
        """Return the fingerprint of the vectors in use, and of those being made; empty where there is none.

        A note is of one column of vectors, and of one column of texts, which they are the vectors of.
        """
        if not self._noting(connection):
            return "", ""
        query = "SELECT fingerprint, rebuilding FROM {notes} WHERE (name, vector) = ({key}) AND text = {text_name}"
        return self.run(connection, query).fetchone() or ("", "")

    def note(self, connection: Connection, fingerprint: str, rebuilding: str) -> None:
        """Write both down, in the transaction of the connection."""
        wait_for(connection, "notes")
        try:
            if not self._noting(connection):
                self.run(
                    connection,
                    "CREATE TABLE {notes} (name text, vector text, text text NOT NULL, fingerprint text NOT NULL, "
                    "rebuilding text NOT NULL, PRIMARY KEY (name, vector))",
                )
            self.run(
                connection,
                "INSERT INTO {notes} VALUES ({key}, {text_name}, %s, %s) ON CONFLICT (name, vector) DO UPDATE SET "
                "text = excluded.text, fingerprint = excluded.fingerprint, rebuilding = excluded.rebuilding",
                [fingerprint, rebuilding],
            )
        except psycopg.errors.InsufficientPrivilege:
            raise StoreError(
                f"the vectors of {self.full} are noted in {self.schema}.fedrag_stores, which this role may not write; "
                "call from_pgvector once as a role that may, and GRANT SELECT on both tables to this one"
            ) from None
        self.saw(fingerprint)

    def saw(self, fingerprint: str) -> str:
        """Remember, in this thread, what is noted."""
        self._seen.fingerprint = fingerprint
        return fingerprint

    def check_seen(self, connection: Connection, *others: str) -> tuple[str, str]:
        """Return the notes. Raises `StaleIndexError` if they are no longer what this thread noted or saw last."""
        noted, rebuilding = self.notes(connection)
        if (seen := getattr(self._seen, "fingerprint", noted)) != noted and noted not in others:
            raise StaleIndexError(
                f"the vectors of {self.full} were those of {seen!r}, and another process has put those of {noted!r} "
                "in their place: load that encoder, or call retriever.refresh()"
            )
        return noted, rebuilding

    def _noting(self, connection: Connection) -> bool:
        query = "SELECT to_regclass(format('%%I.fedrag_stores', %s::text)::text) IS NOT NULL"
        return connection.execute(query, [self.schema]).fetchall() == [(True,)]

    def key(self, id: str) -> str:
        """Return an id as it lies in the table."""
        return escaped(id) if self.own else id

    def row(self, document: Document) -> tuple[str, str, str, list[bytes]]:
        """Return the columns of a document, of which `encode` has seen that a store can keep it."""
        metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
        strange = _CHANGED.search(metadata) is not None or not holdable(metadata)
        if self.own:
            if strange:
                metadata = json.dumps(json.dumps(dict(document.metadata)))
            media = [part for item in document.media for part in (item.data, item.mime.encode())]
            return escaped(document.id), escaped(document.text), metadata, media
        if document.media or strange or not holdable(document.text + document.id):
            raise InputError(
                f"document {document.id!r} holds what the columns of {self.full} do not: media, NUL characters, or "
                "numbers that jsonb changes; a table that PgVectorStore makes (without columns=) does"
            )
        if document.metadata and self._columns.metadata is None:
            raise InputError(f"document {document.id!r} has metadata, and {self.full} no column for it: name one")
        return document.id, document.text, metadata, []

    def document(self, row: Sequence[Any]) -> Document:
        """Return the document that the first four columns are."""
        id, text, metadata, media = row[:4]
        if self.own:
            metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
            pairs = zip(media[::2], media[1::2], strict=True)
            parts = tuple(Media(bytes(data), mime.decode()) for data, mime in pairs)
            return Document(plainly(text), plainly(id), metadata, parts)
        if not isinstance(metadata, dict):
            raise StoreError(f"the metadata of row {id!r} of {self.full} is no JSON object; make it one")
        return Document(text, id, cast(dict[str, Any], metadata))

    def upsert(self, connection: Connection, shape: Shape) -> None:
        """Take what lies in the table `fedrag_staged` into this one, in its order."""
        query = (
            "SELECT s.id, COALESCE(t.{id}::text, s.id::{type}::text) FROM fedrag_staged AS s LEFT JOIN {table} AS t "
            'ON t.{id} = s.id::{type} WHERE COALESCE(t.{id}::text, s.id::{type}::text) COLLATE "C" <> s.id LIMIT 1'
        )
        for id, other in () if self.own else self.run(connection, query, type=shape.type):
            raise InputError(f"{self.full} would keep the id {id!r} as {other!r}; give the document that id")
        given = [("{text}", "text"), ("{vector}", "embedding")]
        given += [("{about}", "metadata::jsonb")] if self._columns.metadata is not None else []
        given += [("{media}", "media")] if self.own else []
        new = [name for name, _ in given] + (["place"] if self.own else [])  # one that is replaced goes to the end
        query = "INSERT INTO {table} ({id}, " + ", ".join(name for name, _ in given) + ") OVERRIDING SYSTEM VALUE "
        query += "SELECT id::{type}, " + ", ".join(value for _, value in given) + " FROM fedrag_staged ORDER BY nr "
        query += "ON CONFLICT ({id}) DO UPDATE SET " + ", ".join(name + " = excluded." + name for name in new)
        self.run(connection, cast(LiteralString, query), type=shape.type)
