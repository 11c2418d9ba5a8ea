"""A table of PostgreSQL, with the extension pgvector, as a knowledge store: a new one, or one that was there.

rag = from_pgvector("postgresql://clerk@db/clinic", "handbook", encoder=SentenceEncoder("all-MiniLM-L6-v2"),
                    columns=Columns(text="content", vector="embedding", metadata="meta"))
RAGTrainer(Contrastive(rag), train_dataset=train).train()  # the table now has the tuned encoder's vectors

One's own SQL goes on as before, with the tuned encoder's vectors on both sides:
`SELECT id, content FROM handbook ORDER BY embedding <#> %s LIMIT 5`.

Every change is one transaction: others see it done or not begun, also when this process dies. Tuning makes its vectors
in a table beside, and swaps them in at the end; interrupted, `retriever.refresh()` goes on. Any number of processes
may read and write; those that write to one table take turns. Beside the table lies `fedrag_stores`, which notes whose
vectors each column of the schema holds; what an encoder made that is no longer noted is refused.

Hits are exact: what PostgreSQL finds is scored again from its vectors, and looked at with the filter again
(`pgvector_filters` says why). Score and order are those of a `MemoryStore`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice

import torch
from torch import Tensor

from fedrag.errors import InputError, StaleIndexError, StoreError
from fedrag.filters import compile_filter
from fedrag.integrations.mirror import SAMPLE, UNKNOWN, wrote
from fedrag.integrations.pgvector_database import Connection, Database, Source
from fedrag.integrations.pgvector_rebuild import PgVectorRebuild
from fedrag.integrations.pgvector_rows import found, known
from fedrag.integrations.pgvector_search import Search, matrix
from fedrag.integrations.pgvector_table import Columns, PgTable, Shape
from fedrag.prompts import Prompt
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.matrix import Matrix, plain, plain_with_ids
from fedrag.stores.table import encode
from fedrag.types import Document, Encoder, Generator, Hit, Where

__all__ = ["Columns", "PgVectorStore", "from_pgvector"]


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
        self._given: set[str] = set()  # ids of documents that `lacking` gave

    def add(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert or replace documents with their `[n, d]` vectors; a replaced one takes its place at the end."""
        vectors = plain_with_ids(vectors, [document.id for document in documents])
        if not documents:
            return
        encode(documents)  # refuses what no store keeps
        rows = [self._table.row(document) for document in documents]
        with self._writing() as connection:
            self._table.check_seen(connection)
            shape = self._fitting(connection, vectors)
            connection.execute(
                "CREATE TEMPORARY TABLE fedrag_staged (nr bigint, id text, text text, metadata text, media bytea[], "
                "embedding vector) ON COMMIT DROP"
            )
            with connection.cursor().copy("COPY fedrag_staged FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["bigint", "text", "text", "text", "bytea[]", "vector"])
                for number, (row, vector) in enumerate(zip(rows, vectors.numpy(), strict=True)):
                    copy.write_row((number, *row, vector))
            self._table.upsert(connection, shape)

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
            return [self._table.document(row) for row in known(connection, self._table, ids).values()]

    def vectors(self, ids: Sequence[str]) -> Tensor:
        """Return the `[n, d]` float32 vectors of these ids, in order. Raises `StoreError` where there is none."""
        with self._database.transaction() as connection:
            rows = list(known(connection, self._table, ids, vectors=True).values())
        if not rows:
            return torch.empty((0, 0), device="cpu")
        if lacking := [row[0] for row in rows if row[4] is None]:
            raise StoreError(f"document {lacking[0]!r} has no vector; call retriever.refresh() to make it")
        return torch.from_numpy(matrix([row[4] for row in rows]))

    def remove(self, ids: Sequence[str]) -> int:
        """Delete these documents; return how many were there."""
        with self._writing() as connection:
            shape = self._table.shape(connection)
            there = list(found(connection, self._table, ids))
            if shape is None or not there:
                return 0
            delete = "DELETE FROM {table} WHERE {id} = ANY(%s::text[]::{type}[])"
            return self._table.run(connection, delete, [there], type=shape.type).rowcount

    def documents(self) -> Iterator[Document]:
        """Stream every document, in the order in which they came; those of a table that was there, by their ids."""
        if self.made:
            query = self._table.sql("SELECT {document} FROM {table} ORDER BY {order}")
            yield from map(self._table.document, self._database.stream(query))

    def update_vectors(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Replace the vectors of documents that are there already."""
        vectors = plain_with_ids(vectors, ids)
        with self._writing() as connection:
            self._table.check_seen(connection)
            rows = known(connection, self._table, ids, given=self._given)
            if rows:
                shape = self._fitting(connection, vectors)
                update = "UPDATE {table} SET {vector} = %b WHERE {id} = %s::text::{type}"
                pairs = [(vectors[number].numpy(), row[0]) for number, row in rows.items()]
                connection.cursor().executemany(self._table.sql(update, type=shape.type), pairs)
        self._given.difference_update(map(self._table.key, ids))

    def lacking(self, batch_size: int) -> Iterator[list[Document]]:
        """Yield, in batches, the documents that have no vector: rows that others' SQL brought."""
        if self._table.own or not self.made:
            return
        query = self._table.sql("SELECT {document} FROM {table} WHERE {vector} IS NULL ORDER BY {order}")
        rows = self._database.stream(query)
        while batch := [self._table.document(row) for row in islice(rows, batch_size)]:
            self._given.update(document.id for document in batch)
            yield batch

    def rebuild(self, fingerprint: str) -> PgVectorRebuild:
        """Start new vectors for all documents, or go on with those that an earlier process left."""
        if not fingerprint:
            raise InputError("a rebuild needs the fingerprint of the encoder that makes its vectors, got ''")
        return PgVectorRebuild(self._database, self._table, fingerprint)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the document encoder that wrote the vectors, as `fedrag_stores` has it.

        Setting it, `add` and `update_vectors` raise `StaleIndexError` if it is no longer what this thread saw last.
        """
        with self._database.transaction() as connection:
            return self._table.saw(self._table.notes(connection)[0])

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        with self._writing() as connection:
            noted, rebuilding = self._table.check_seen(connection, value)
            if noted != value:
                self._table.note(connection, value, rebuilding)
            self._table.saw(value)

    def __len__(self) -> int:
        with self._database.transaction() as connection:
            return self._table.count(connection)

    def __contains__(self, id: object) -> bool:
        with self._database.transaction() as connection:
            return isinstance(id, str) and bool(found(connection, self._table, [id]))

    def __repr__(self) -> str:
        return f"PgVectorStore({self._table.full!r} in {self._database!r})"

    def sample(self, count: int) -> tuple[list[Document], Tensor]:
        """Return the first document, the last, and some drawn at random, and their `[n, d]` vectors.

        Documents without a vector are left out.
        """
        query = "(SELECT {document}, {vector} FROM {table} WHERE {vector} IS NOT NULL ORDER BY "
        ends = ("{order} LIMIT 1)", "{order} DESC LIMIT 1)", "random() LIMIT %s)")
        with self._database.transaction() as connection:
            rows = self._table.run(connection, " UNION ALL ".join(query + end for end in ends), [count]).fetchall()
        if not rows:
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
    agree, the encoder is taken to be the one that wrote them, and noted. Where they do not, or none has a vector,
    queries raise `StaleIndexError` until `rag.retriever.refresh()`. Rows without a vector are not found until then.
    """
    store = PgVectorStore(database, table, schema=schema, columns=columns, exact=exact)
    if not store.made:
        raise InputError(f"there is no table {schema}.{table}; PgVectorStore makes one with its first documents")
    if len(store) and store.fingerprint in ("", UNKNOWN, encoder.fingerprint):
        with suppress(StaleIndexError):  # another process has noted meanwhile whose they are
            store.fingerprint = encoder.fingerprint if wrote(encoder, *store.sample(SAMPLE)) else UNKNOWN
    return RAGSystem(retriever=DenseRetriever(encoder, store), generator=generator, prompt=prompt, top_k=top_k)
