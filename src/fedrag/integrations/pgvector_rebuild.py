"""New vectors for all documents of a `PgVectorStore`, made in a table beside it and swapped in by one transaction.

That table tells which vectors are there, to a later process too, and of which text each was made: a document that has
been given another text since then, by anybody's SQL, wants a new vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice

from torch import Tensor

from fedrag.errors import StoreError
from fedrag.integrations.pgvector_database import Connection, Database
from fedrag.integrations.pgvector_rows import known
from fedrag.integrations.pgvector_table import PgTable
from fedrag.stores.matrix import Matrix, plain_with_ids
from fedrag.types import Document

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
    """

    def __init__(self, database: Database, table: PgTable, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._database, self._table = database, table
        self._read: dict[str, bytes] = {}  # by id, the digest of the text that `missing` gave
        with database.transaction(writing=table.full) as connection:
            in_use, begun = table.notes(connection)
            if begun != fingerprint:
                table.run(connection, "DROP TABLE IF EXISTS {side}")
                table.run(
                    connection,
                    'CREATE TABLE {side} (made_for text COLLATE "C" PRIMARY KEY, made_from bytea NOT NULL, '
                    "vector_made vector NOT NULL)",
                )
                table.note(connection, in_use, fingerprint)

    def missing(self, batch_size: int) -> Iterator[list[Document]]:
        """Yield, in batches, the documents that have no new vector yet."""
        with self._database.transaction() as connection:
            self._check_open(connection)
            there = self._table.shape(connection) is not None
        query = self._table.sql("SELECT {document} FROM {table} WHERE " + _HAS_NONE + " ORDER BY {order}")
        rows = self._database.stream(query) if there else iter(())
        while batch := list(islice(rows, batch_size)):
            self._read.update({row[0]: _digest(row[1]) for row in batch})
            yield [self._table.document(row) for row in batch]

    def put(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Keep the new `[n, d]` vectors of these documents; searches still see the old ones.

        Documents that `missing` gave and that are gone since then are passed over, and told of.
        """
        vectors = plain_with_ids(vectors, ids)
        with self._database.transaction(writing=self._table.full) as connection:
            self._check_open(connection)
            rows = known(connection, self._table, ids, given=self._read)
            width = self._width(connection)
            if width is not None:
                Matrix("float32", width).check_width(vectors)
            new = vectors.numpy()
            made = [(row[0], self._read.get(row[0]) or _digest(row[1]), new[number]) for number, row in rows.items()]
            insert = (
                "INSERT INTO {side} VALUES (%s, %s, %b) ON CONFLICT (made_for) DO UPDATE "
                "SET made_from = excluded.made_from, vector_made = excluded.vector_made"
            )
            connection.cursor().executemany(self._table.sql(insert), made)
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
                self._table.run(connection, "LOCK TABLE {table} IN " + mode + " MODE")
                counted = "SELECT count(*), count(*) FILTER (WHERE " + _HAS_NONE + ") FROM {table}"
                ((total, waiting),) = self._table.run(connection, counted).fetchall()
                if waiting:
                    raise StoreError(f"{waiting} of {total} documents have no new vector yet; put those of `missing`")
                if total and widen and width is not None:
                    self._table.widen(connection, width)
                update = "UPDATE {table} SET {vector} = vector_made FROM {side} WHERE made_for = {table}.{id}::text"
                self._table.run(connection, update + ' COLLATE "C"')
            self._table.run(connection, "DROP TABLE {side}")
            self._table.note(connection, self.fingerprint, "")

    def _width(self, connection: Connection) -> int | None:
        query = "SELECT vector_dims(vector_made) FROM {side} LIMIT 1"
        return next((width for (width,) in self._table.run(connection, query)), None)

    def _check_open(self, connection: Connection) -> None:
        if self._table.notes(connection)[1] != self.fingerprint:
            raise StoreError(f"the rebuild for {self.fingerprint!r} is finished or replaced; call rebuild() again")


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()
