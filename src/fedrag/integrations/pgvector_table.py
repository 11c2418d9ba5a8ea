"""The table of a `PgVectorStore`: how it is made, what its columns hold, and the notes kept beside it.

A table that is made here has the columns `id`, `text`, `metadata`, `media` and `embedding`, for anybody's SQL, and
`place`, which is the order. PostgreSQL keeps no NUL character in a text, and `jsonb` changes some numbers: such a text
is escaped behind a mark, and such metadata is a JSON string that holds the JSON.

A table that was there is read and written in the columns that it is told (`Columns`), and otherwise left as it is.

>>> escaped(r"C:\\keys"), escaped("a\\0b") == MARK + r"a\\0b", plainly(escaped("a\\0b")) == "a\\0b"
('C:\\\\keys', True, True)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, cast

from fedrag.errors import InputError, StoreError
from fedrag.integrations.pgvector_database import Connection, wait_for
from fedrag.integrations.pgvector_filters import holdable
from fedrag.optional import require
from fedrag.types import Document, Media

require("psycopg", extra="pgvector")

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal  # noqa: E402

MARK = "\ue000"
"""The first character, of those for private use, of an escaped text or id."""
_NOTES = Identifier("fedrag_stores")
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
            if not one or "%" in one or "\0" in one:
                raise InputError(f"{one!r} cannot name a table, schema or column here; leave out % and NUL")
        self.schema, self.name, self.own = schema, name, columns is None
        self.full = f"{schema}.{name}"
        self._columns = chosen
        self._parts: dict[str, Composable] = {
            "table": Identifier(schema, name),
            "notes": SQL("{}.{}").format(Identifier(schema), _NOTES),
            "name": Literal(name),
            "id": Identifier(chosen.id),
            "text": Identifier(chosen.text),
            "vector": Identifier(chosen.vector),
            # with the table's name, for "id::text" in a SELECT is called "id", too
            "order": Identifier(schema, name, "place" if self.own else chosen.id),
            "media": Identifier("media") if self.own else SQL("NULL::bytea[]"),
            "metadata": SQL("'{{}}'::jsonb").format(),
        }
        if chosen.metadata is not None:
            self._parts["metadata"] = SQL("COALESCE({}::jsonb, '{{}}')").format(Identifier(chosen.metadata))
        self._parts["document"] = self.sql("{id}::text, COALESCE({text}::text, ''), {metadata}, {media}")

    def sql(self, text: LiteralString, **more: Composable) -> Composed:
        """Put the names of this table in the place of `{table}`, `{id}`, `{text}`, `{vector}`, ..."""
        return SQL(text).format(**self._parts, **more)

    def shape(self, connection: Connection) -> Shape | None:
        """Return what the table is like; `None` where there is none. Raises `InputError` for one that cannot serve."""
        found = connection.execute(
            "SELECT attname, format_type(atttypid, NULL), atttypmod, EXISTS (SELECT FROM pg_index WHERE indrelid = "
            "attrelid AND indisunique AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = attnum), attnotnull "
            "FROM pg_attribute WHERE attrelid = to_regclass(format('%%I.%%I', %s::text, %s::text)::text) "
            "AND attnum > 0 AND NOT attisdropped",
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
                f"the column {it.id!r} of {self.full} may hold one id twice, or none; "
                f'run: ALTER TABLE {self.full} ADD PRIMARY KEY ("{it.id}")'
            )
        if vector_type.rpartition(".")[2] != "vector":
            raise InputError(f"the column {it.vector!r} of {self.full} is of type {vector_type}; it must be a vector")
        return Shape(SQL(cast(LiteralString, id_type)), size if size > 0 else None)

    def width(self, connection: Connection) -> int | None:
        """Return how wide the vectors are; `None` where there is none."""
        if self.shape(connection) is None:
            return None
        query = self.sql("SELECT vector_dims({vector}) FROM {table} WHERE {vector} IS NOT NULL LIMIT 1")
        found = connection.execute(query).fetchone()
        return found[0] if found else None

    def create(self, connection: Connection, width: int) -> Shape:
        """Make the table. Raises `InputError` where the columns say that one should have been there."""
        if not self.own:
            raise InputError(f"there is no table {self.full}; leave out columns= to have one made")
        connection.execute(
            self.sql(
                'CREATE TABLE {table} (id text COLLATE "C" PRIMARY KEY, text text NOT NULL, metadata jsonb NOT NULL, '
                "media bytea[] NOT NULL, embedding vector({width}) NOT NULL, "
                "place bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY)",
                width=Literal(width),
            )
        )
        return Shape(SQL("text"), width)

    def widen(self, connection: Connection, width: int) -> None:
        """Give the column of vectors another width; all are nought until they are replaced."""
        change = "ALTER TABLE {table} ALTER COLUMN {vector} TYPE vector({width}) USING {zeros}::vector"
        zeros = SQL("array_fill(0::real, ARRAY[{}])").format(width)
        connection.execute(self.sql(change, width=Literal(width), zeros=zeros))

    def notes(self, connection: Connection) -> tuple[str, str]:
        """Return the fingerprint of the vectors in use, and of those being made; empty where there is none."""
        there = connection.execute(
            "SELECT to_regclass(format('%%I.fedrag_stores', %s::text)::text) IS NOT NULL", [self.schema]
        )
        if there.fetchall() != [(True,)]:
            return "", ""
        found = connection.execute(self.sql("SELECT fingerprint, rebuilding FROM {notes} WHERE name = {name}"))
        return found.fetchone() or ("", "")  # pyright: ignore[reportReturnType]

    def note(self, connection: Connection, fingerprint: str, rebuilding: str) -> None:
        """Write both down, in the transaction of the connection."""
        wait_for(connection, "notes")
        connection.execute(
            self.sql(
                "CREATE TABLE IF NOT EXISTS {notes} (name text PRIMARY KEY, fingerprint text NOT NULL, "
                "rebuilding text NOT NULL)"
            )
        )
        connection.execute(
            self.sql(
                "INSERT INTO {notes} VALUES ({name}, %s, %s) ON CONFLICT (name) DO UPDATE "
                "SET fingerprint = excluded.fingerprint, rebuilding = excluded.rebuilding"
            ),
            [fingerprint, rebuilding],
        )

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
            return Document(
                plainly(text), plainly(id), metadata, tuple(Media(bytes(data), mime.decode()) for data, mime in pairs)
            )
        if not isinstance(metadata, dict):
            raise StoreError(f"the metadata of row {id!r} of {self.full} is no JSON object; make it one")
        return Document(text, id, cast(dict[str, Any], metadata))

    def upsert(self, shape: Shape) -> Composed:
        """Return the statement that takes what lies in the table `fedrag_staged` into this one, in its order."""
        given: list[tuple[Composable, Composable]] = [
            (self._parts["id"], SQL("id::{}").format(shape.type)),
            (self._parts["text"], SQL("text")),
            (self._parts["vector"], SQL("embedding")),
        ]
        if self._columns.metadata is not None:
            given.append((Identifier(self._columns.metadata), SQL("metadata::jsonb")))
        if self.own:
            given.append((self._parts["media"], SQL("media")))
        names = [name for name, _ in given]
        new = [*names[1:], *([Identifier("place")] if self.own else [])]  # one that is replaced goes to the end
        return self.sql(
            "INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM fedrag_staged ORDER BY nr "
            "ON CONFLICT ({id}) DO UPDATE SET {new}",
            names=_list(names),
            values=_list(value for _, value in given),
            new=_list(SQL("{} = excluded.{}").format(name, name) for name in new),
        )


def escaped(text: str) -> str:
    """Return a text that PostgreSQL keeps, a different one for each; nearly always the text itself."""
    if "\0" not in text and not text.startswith(MARK):
        return text
    return MARK + text.replace("\\", "\\\\").replace("\0", "\\0")


def plainly(text: str) -> str:
    """Undo `escaped`."""
    if not text.startswith(MARK):
        return text
    return re.sub(r"\\(.)", lambda found: "\0" if found[1] == "0" else found[1], text[1:])


def _list(parts: Iterable[Composable]) -> Composed:
    return SQL(", ").join(parts)
