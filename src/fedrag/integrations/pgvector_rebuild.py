"""New vectors for all documents of a `PgVectorStore`, made in a table beside it and swapped in by one transaction.

That table tells which vectors are there, to a later process too, and of which text each was made: a document that has
been given another text since then, by anybody's SQL, wants a new vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from typing import Any, LiteralString

from torch import Tensor

from fedrag.errors import StoreError
from fedrag.integrations.pgvector_database import Connection, Database
from fedrag.integrations.pgvector_table import PgTable
from fedrag.optional import require
from fedrag.stores.matrix import Matrix, plain_with_ids
from fedrag.types import Document

require("psycopg", extra="pgvector")

from psycopg.sql import Composed, Identifier  # noqa: E402

_HAS_NONE = (
    'NOT EXISTS (SELECT FROM {side} WHERE made_for = {id}::text COLLATE "C" '
    "AND made_from = sha256(convert_to(COALESCE({text}::text, ''), 'UTF8')))"
)


class PgVectorRebuild:
    """An unfinished rebuild; `PgVectorStore.rebuild` makes it. Fulfils the `Rebuild` protocol.

    Args:
        database: where both tables are.
        table: the one in use.
        fingerprint: that of the encoder to come.
        known: returns the rows of these documents, in order: id, text, ...
    """

    def __init__(
        self,
        database: Database,
        table: PgTable,
        fingerprint: str,
        *,
        known: Callable[[Connection, Sequence[str]], list[tuple[Any, ...]]],
    ) -> None:
        self.fingerprint = fingerprint
        self._database, self._table, self._known = database, table, known
        self._side = Identifier(table.schema, f"fedrag_rebuild_{sha256(table.name.encode()).hexdigest()[:16]}")
        self._read: dict[str, bytes] = {}  # by id, the digest of the text that `missing` gave
        with database.transaction(writing=table.full) as connection:
            in_use, begun = table.notes(connection)
            if begun != fingerprint:
                connection.execute(self._sql("DROP TABLE IF EXISTS {side}"))
                connection.execute(
                    self._sql(
                        'CREATE TABLE {side} (made_for text COLLATE "C" PRIMARY KEY, made_from bytea NOT NULL, '
                        "vector_made vector NOT NULL)"
                    )
                )
                table.note(connection, in_use, fingerprint)

    def missing(self, batch_size: int) -> Iterator[list[Document]]:
        """Yield, in batches, the documents that have no new vector yet."""
        with self._database.transaction() as connection:
            self._check_open(connection)
            there = self._table.shape(connection) is not None
        query = self._sql("SELECT {document} FROM {table} WHERE " + _HAS_NONE + " ORDER BY {order}")
        rows = self._database.stream(query) if there else iter(())
        while batch := list(islice(rows, batch_size)):
            self._read.update({row[0]: _digest(row[1]) for row in batch})
            yield [self._table.document(row) for row in batch]

    def put(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Keep the new `[n, d]` vectors of these documents; searches still see the old ones."""
        vectors = plain_with_ids(vectors, ids)
        with self._database.transaction(writing=self._table.full) as connection:
            self._check_open(connection)
            rows = self._known(connection, ids)
            width = self._width(connection)
            if width is not None:
                Matrix("float32", width).check_width(vectors)
            made = [
                (row[0], self._read.get(row[0]) or _digest(row[1]), vector)
                for row, vector in zip(rows, vectors.numpy(), strict=True)
            ]
            connection.cursor().executemany(
                self._sql(
                    "INSERT INTO {side} VALUES (%s, %s, %b) ON CONFLICT (made_for) DO UPDATE "
                    "SET made_from = excluded.made_from, vector_made = excluded.vector_made"
                ),
                made,
            )
        for id, _, _ in made:
            self._read.pop(id, None)

    def commit(self) -> None:
        """Put the new vectors and their fingerprint in place. Raises `StoreError` while any is missing."""
        with self._database.transaction(writing=self._table.full) as connection:
            self._check_open(connection)
            shape, width = self._table.shape(connection), self._width(connection)
            if shape is not None:
                widen = None not in (shape.width, width) and shape.width != width
                # nobody else adds a document in between; those who read are not kept waiting, but for another width
                mode = "ACCESS EXCLUSIVE" if widen else "SHARE ROW EXCLUSIVE"
                connection.execute(self._sql("LOCK TABLE {table} IN " + mode + " MODE"))
                counted = self._sql("SELECT count(*), count(*) FILTER (WHERE " + _HAS_NONE + ") FROM {table}")
                ((total, waiting),) = connection.execute(counted).fetchall()
                if waiting:
                    raise StoreError(f"{waiting} of {total} documents have no new vector yet; put those of `missing`")
                if total and widen and width is not None:
                    self._table.widen(connection, width)
                connection.execute(
                    self._sql(
                        "UPDATE {table} SET {vector} = vector_made FROM {side} "
                        'WHERE made_for = {table}.{id}::text COLLATE "C"'
                    )
                )
            connection.execute(self._sql("DROP TABLE {side}"))
            self._table.note(connection, self.fingerprint, "")

    def _width(self, connection: Connection) -> int | None:
        found = connection.execute(self._sql("SELECT vector_dims(vector_made) FROM {side} LIMIT 1")).fetchone()
        return found[0] if found else None

    def _check_open(self, connection: Connection) -> None:
        if self._table.notes(connection)[1] != self.fingerprint:
            raise StoreError(
                f"the rebuild for {self.fingerprint!r} is finished or replaced; call rebuild() for another"
            )

    def _sql(self, text: LiteralString) -> Composed:
        return self._table.sql(text, side=self._side)


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()
