"""A table of PostgreSQL, with the extension pgvector, as a knowledge store: a new one, or one that was there.

rag = from_pgvector("postgresql://clerk@db/clinic", "handbook", encoder=SentenceEncoder("all-MiniLM-L6-v2"),
                    columns=Columns(text="content", vector="embedding", metadata="meta"))
RAGTrainer(Contrastive(rag), train_dataset=train).train()  # the table now has the tuned encoder's vectors

One's own SQL goes on as before, with the tuned encoder's vectors on both sides:
`SELECT id, content FROM handbook ORDER BY embedding <#> %s LIMIT 5`.

Every change is one transaction: others see it done or not begun, also when this process dies. Tuning makes its vectors
in a table beside, and swaps them in at the end; interrupted, `retriever.refresh()` goes on. Any number of processes
may read and write; those that write to one table take turns. Beside the table lies `fedrag_stores`, which notes whose
vectors each table of the schema holds.

Hits are exact: what PostgreSQL finds is scored again from its vectors, and looked at with the filter again
(`pgvector_filters` says why). Score and order are those of a `MemoryStore`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fedrag.errors import InputError, StoreError
from fedrag.filters import compile_filter
from fedrag.integrations.mirror import SAMPLE, UNKNOWN, wrote
from fedrag.integrations.pgvector_database import Connection, Database, Source
from fedrag.integrations.pgvector_filters import holdable
from fedrag.integrations.pgvector_rebuild import PgVectorRebuild
from fedrag.integrations.pgvector_search import Search, matrix
from fedrag.integrations.pgvector_table import Columns, PgTable, Shape
from fedrag.optional import require
from fedrag.prompts import Prompt
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.matrix import Matrix, plain, plain_with_ids
from fedrag.stores.table import encode
from fedrag.types import Document, Encoder, Generator, Hit, Where

require("psycopg", extra="pgvector")
require("pgvector", extra="pgvector")

import psycopg  # noqa: E402

__all__ = ["Columns", "PgVectorStore", "from_pgvector"]

Row = tuple[Any, ...]


class PgVectorStore:
    """Documents and their vectors in a table of PostgreSQL, which is made with the first documents.

    One instance serves several threads, which take turns on its one connection.

    Args:
        database: a connection string, or a function that returns a new connection.
        table: its name.
        schema: where it is; the schema must be there.
        columns: the names of the columns, for a table that was there.
        exact: compare with every vector. `False` lets PostgreSQL use an index of yours, by which hits may be missed.
    """

    def __init__(
        self,
        database: Source,
        table: str,
        *,
        schema: str = "public",
        columns: Columns | None = None,
        exact: bool = True,
    ) -> None:
        self._database = Database(database)
        self._table = PgTable(schema, table, columns)
        self._exact = exact

    def add(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert or replace documents with their `[n, d]` vectors; a replaced one takes its place at the end."""
        vectors = plain_with_ids(vectors, [document.id for document in documents])
        if not documents:
            return
        encode(documents)  # refuses what no store keeps
        rows = [self._table.row(document) for document in documents]
        with self._writing() as connection:
            shape = self._fitting(connection, vectors)
            connection.execute(
                "CREATE TEMPORARY TABLE fedrag_staged (nr bigint, id text, text text, metadata text, media bytea[], "
                "embedding vector) ON COMMIT DROP"
            )
            with connection.cursor().copy("COPY fedrag_staged FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["bigint", "text", "text", "text", "bytea[]", "vector"])
                for number, (row, vector) in enumerate(zip(rows, vectors.numpy(), strict=True)):
                    copy.write_row((number, *row, vector))
            connection.execute(self._table.upsert(shape))

    def search(self, vectors: Tensor, k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return, per row of `[n, d]`, the k best hits among the documents that match `where`, best first."""
        queries = plain(vectors)
        if k < 1:
            raise InputError(f"k is {k}; ask for at least one hit")
        if where is not None:
            compile_filter(where)  # refuses what is no filter
        if not len(queries):
            return []
        with self._database.transaction() as connection:
            width = self._table.width(connection)
            if width is None:
                return [[] for _ in queries]
            Matrix("float32", width).check_width(queries)
            return Search(connection, self._table, exact=self._exact).best(queries, k, where)

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents of these ids, in order. An unknown id is an `InputError`."""
        with self._database.transaction() as connection:
            return [self._table.document(row) for row in self._known(connection, ids)]

    def vectors(self, ids: Sequence[str]) -> Tensor:
        """Return the `[n, d]` float32 vectors of these ids, in order. Raises `StoreError` where there is none."""
        with self._database.transaction() as connection:
            rows = self._known(connection, ids, vectors=True)
        if not rows:
            return torch.empty((0, 0), device="cpu")
        if lacking := [row[0] for row in rows if row[4] is None]:
            raise StoreError(f"document {lacking[0]!r} has no vector; call retriever.refresh() to make it")
        return torch.from_numpy(matrix([row[4] for row in rows]))

    def remove(self, ids: Sequence[str]) -> int:
        """Delete these documents; return how many were there."""
        with self._writing() as connection:
            shape = self._table.shape(connection)
            there = list(self._found(connection, ids))
            if shape is None or not there:
                return 0
            delete = self._table.sql("DELETE FROM {table} WHERE {id} = ANY(%s::text[]::{type}[])", type=shape.type)
            return connection.execute(delete, [there]).rowcount

    def documents(self) -> Iterator[Document]:
        """Stream every document, in the order in which they came; those of a table that was there, by their ids."""
        if self.made:
            query = self._table.sql("SELECT {document} FROM {table} ORDER BY {order}")
            yield from map(self._table.document, self._database.stream(query))

    def update_vectors(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Replace the vectors of documents that are there already."""
        vectors = plain_with_ids(vectors, ids)
        with self._writing() as connection:
            rows = self._known(connection, ids)
            if rows:
                shape = self._fitting(connection, vectors)
                update = self._table.sql(
                    "UPDATE {table} SET {vector} = %b WHERE {id} = %s::text::{type}", type=shape.type
                )
                pairs = zip(vectors.numpy(), rows, strict=True)
                connection.cursor().executemany(update, [(vector, row[0]) for vector, row in pairs])

    def rebuild(self, fingerprint: str) -> PgVectorRebuild:
        """Start new vectors for all documents, or go on with those that an earlier process left."""
        if not fingerprint:
            raise InputError("a rebuild needs the fingerprint of the encoder that makes its vectors, got ''")
        return PgVectorRebuild(self._database, self._table, fingerprint, known=self._known)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the document encoder that wrote the vectors, as `fedrag_stores` has it."""
        with self._database.transaction() as connection:
            return self._table.notes(connection)[0]

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        with self._writing() as connection:
            noted, rebuilding = self._table.notes(connection)
            if noted != value:
                self._table.note(connection, value, rebuilding)

    def __len__(self) -> int:
        with self._database.transaction() as connection:
            if self._table.shape(connection) is None:
                return 0
            ((count,),) = connection.execute(self._table.sql("SELECT count(*) FROM {table}")).fetchall()
            return count

    def __contains__(self, id: object) -> bool:
        with self._database.transaction() as connection:
            return isinstance(id, str) and bool(self._found(connection, [id]))

    def __repr__(self) -> str:
        return f"PgVectorStore({self._table.full!r} in {self._database!r})"

    def sample(self, count: int) -> tuple[list[Document], Tensor]:
        """Return some documents, drawn at random, and their `[n, d]` vectors; none where any has no vector."""
        with self._database.transaction() as connection:
            query = "SELECT {document}, {vector} FROM {table} ORDER BY {vector} IS NULL DESC, random() LIMIT %s"
            rows = connection.execute(self._table.sql(query), [count], binary=True).fetchall()
        if not rows or rows[0][4] is None:
            return [], torch.empty((0, 0), device="cpu")
        return [self._table.document(row) for row in rows], torch.from_numpy(matrix([row[4] for row in rows]))

    @property
    def made(self) -> bool:
        """Whether the table is there."""
        with self._database.transaction() as connection:
            return self._table.shape(connection) is not None

    def close(self) -> None:
        """Close the connection; a later call opens another."""
        self._database.close()

    def _writing(self) -> AbstractContextManager[Connection]:
        return self._database.transaction(writing=self._table.full)

    def _fitting(self, connection: Connection, vectors: Tensor) -> Shape:
        """Return the table's shape, into which the vectors fit; it is made, or made anew where it is empty."""
        width = vectors.shape[1]
        shape = self._table.shape(connection)
        if shape is None:
            return self._table.create(connection, width)
        there = self._table.width(connection) or (None if self._table.own else shape.width)
        if there is not None:
            Matrix("float32", there).check_width(vectors)
        elif self._table.own and shape.width != width:
            self._table.widen(connection, width)
        return shape

    def _found(self, connection: Connection, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Row]:
        """Return the rows of those documents that are there, by their ids as they lie in the table."""
        keys = [key for key in map(self._table.key, ids) if holdable(key)]
        shape = self._table.shape(connection) if keys else None
        if shape is None:
            return {}
        select = self._table.sql(
            "SELECT {document}, {vector} FROM {table} " if vectors else "SELECT {document} FROM {table} "
        )
        try:
            with connection.transaction():
                typed = self._table.sql("WHERE {id} = ANY(%s::text[]::{type}[])", type=shape.type)
                rows = connection.execute(select + typed, [keys], binary=True).fetchall()
        except psycopg.DataError:  # some id is no number, or no UUID: it is not there, but others may be
            some = self._table.sql("WHERE {id}::text = ANY(%s)")
            rows = connection.execute(select + some, [keys], binary=True).fetchall()
        wanted = set(keys)  # and none that is only equal for the database, as the number 07 is to 7
        return {row[0]: row for row in rows if row[0] in wanted}

    def _known(self, connection: Connection, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """Return the rows of these documents, in order. An unknown id is an `InputError`."""
        there = self._found(connection, ids, vectors=vectors)
        for id in ids:
            if self._table.key(id) not in there:
                raise InputError(f"no document has the id {id!r} (of {len(self)} in the store); add it first")
        return [there[self._table.key(id)] for id in ids]


def from_pgvector(
    database: Source,
    table: str,
    *,
    encoder: Encoder,
    generator: Generator | None = None,
    prompt: Prompt | None = None,
    top_k: int = 5,
    schema: str = "public",
    columns: Columns | None = None,
    exact: bool = True,
) -> RAGSystem:
    """Return a system over a table that is there; `schema`, `columns` and `exact` are those of `PgVectorStore`.

    What wrote its vectors stands nowhere at first. So some of its documents are embedded again: where the vectors
    agree, the encoder is taken to be the one that wrote them, and noted. Where they do not, or any row has no vector,
    queries raise `StaleIndexError` until `rag.retriever.refresh()`.
    """
    store = PgVectorStore(database, table, schema=schema, columns=columns, exact=exact)
    if not store.made:
        raise InputError(f"there is no table {schema}.{table}; PgVectorStore makes one with its first documents")
    if len(store) and store.fingerprint in ("", UNKNOWN, encoder.fingerprint):
        store.fingerprint = encoder.fingerprint if wrote(encoder, *store.sample(SAMPLE)) else UNKNOWN
    return RAGSystem(retriever=DenseRetriever(encoder, store), generator=generator, prompt=prompt, top_k=top_k)
