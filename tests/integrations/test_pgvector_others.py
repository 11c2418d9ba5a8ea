"""What others do to a table and to its database meanwhile, and tables of theirs that differ from those made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
import torch
from psycopg.conninfo import make_conninfo

from fedrag import DenseRetriever, Document, MemoryStore, SentenceEncoder
from fedrag.errors import InputError, StaleIndexError, StoreError
from fedrag.integrations.mirror import UNKNOWN
from fedrag.integrations.pgvector import Columns, PgVectorStore, from_pgvector
from tiny import tiny_sentence_transformer

TEXTS = [f"clerk {n} holds key {n * 7}" for n in range(20)]
Sql = Callable[..., psycopg.Cursor[Any]]


@pytest.fixture
def sql(database: str) -> Iterator[Sql]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        yield connection.execute


def encoder(seed: int = 0) -> SentenceEncoder:
    return SentenceEncoder(tiny_sentence_transformer(kind="static", seed=seed, width=32))


class Interrupted(SentenceEncoder):
    """An encoder; before it encodes the first documents, something else happens."""

    def __init__(self, seed: int, event: Callable[[], object]) -> None:
        super().__init__(tiny_sentence_transformer(kind="static", seed=seed, width=32))
        self.events = [event]

    def encode_documents(self, texts: Sequence[str]) -> torch.Tensor:
        while self.events:
            self.events.pop()()
        return super().encode_documents(texts)


def filled(database: str, table: str) -> PgVectorStore:
    store = PgVectorStore(database, table)
    DenseRetriever(encoder(), store).add([Document(text, f"{n}") for n, text in enumerate(TEXTS)], progress=False)
    return store


def theirs(sql: Sql, table: str, *, key: str = "text PRIMARY KEY") -> None:
    sql(f"CREATE TABLE {table} (id {key}, text text, embedding vector(32), meta jsonb)")
    for n, (text, vector) in enumerate(zip(TEXTS, encoder().encode_documents(TEXTS).tolist(), strict=True)):
        sql(f"INSERT INTO {table} VALUES (%s, %s, %s)", [n, text, str(vector)])


@pytest.mark.parametrize(
    ("other", "columns"),
    [("of two columns", Columns(text="body", vector="body_made")), ("of two texts", Columns(text="body"))],
)
def test_a_note_is_of_one_column_of_vectors_and_of_its_texts(
    database: str, sql: Sql, other: str, columns: Columns
) -> None:
    sql(f'CREATE TABLE "{other}" (id text PRIMARY KEY, text text, body text, embedding vector(32), body_made vector)')
    for n, text in enumerate(TEXTS):
        vectors = [str(each.tolist()) for each in encoder().encode_documents([text, f"body {text}"])]
        sql(f'INSERT INTO "{other}" VALUES (%s, %s, %s, %s, %s)', [n, text, f"body {text}", *vectors])
    titles = from_pgvector(database, other, encoder=encoder(1), columns=Columns()).dense
    bodies = from_pgvector(database, other, encoder=encoder(1), columns=columns).dense
    begun = bodies.store.rebuild("another")
    begun.put(["0"], torch.ones(1, 32))
    titles.refresh(progress=False)
    with pytest.raises(StaleIndexError):
        bodies.retrieve([TEXTS[0]], 1)
    assert bodies.refresh(progress=False) == 20
    wanted = encoder(1).encode_documents([f"body {TEXTS[3]}"])
    assert torch.allclose(bodies.store.vectors(["3"]), wanted, atol=1e-6)


def test_two_columns_are_rebuilt_at_once(database: str, sql: Sql) -> None:
    sql("CREATE TABLE atonce (id text PRIMARY KEY, text text, one vector, two vector)")
    sql("INSERT INTO atonce VALUES ('x', 'x', '[1]', '[1]')")
    rebuilds = [
        PgVectorStore(database, "atonce", columns=Columns(vector=name)).rebuild("new") for name in ("one", "two")
    ]
    for number, rebuild in enumerate(rebuilds):
        rebuild.put(["x"], torch.full((1, 2), float(number)))
    for rebuild in rebuilds:
        rebuild.commit()
    assert sql("SELECT one::text, two::text FROM atonce").fetchall() == [("[0,0]", "[1,1]")]


def test_ids_of_a_fixed_length_are_whole(database: str, sql: Sql) -> None:
    sql("CREATE TABLE fixed (id char(5) PRIMARY KEY, text text, embedding vector(2))")
    sql("INSERT INTO fixed VALUES ('a', 'of a', '[1,0]'), ('ab', 'of ab', '[0,1]')")
    store = PgVectorStore(database, "fixed", columns=Columns())
    assert store.get(["ab", "a"]) == [Document("of ab", "ab"), Document("of a", "a")]
    store.add([Document("new", "ac"), Document("whole", "fives")], torch.ones(2, 2))
    assert sql("SELECT id::text, text FROM fixed ORDER BY id").fetchall() == [
        ("a", "of a"), ("ab", "of ab"), ("ac", "new"), ("fives", "whole")
    ]  # fmt: skip
    assert store.remove(["ab"]) == 1


def test_what_another_process_notes_meanwhile_stands(database: str) -> None:
    store = filled(database, "raced")
    tuned = DenseRetriever(encoder(1), store)
    rag = from_pgvector(database, "raced", encoder=Interrupted(0, lambda: tuned.refresh(progress=False)))
    assert store.fingerprint == encoder(1).fingerprint
    with pytest.raises(StaleIndexError):
        rag.retrieve(TEXTS[3])


def test_vectors_of_an_encoder_that_is_no_longer_noted_are_refused(database: str) -> None:
    store = filled(database, "replaced")
    other = PgVectorStore(database, "replaced")
    late = DenseRetriever(Interrupted(0, lambda: DenseRetriever(encoder(1), store).refresh(progress=False)), other)
    with pytest.raises(StaleIndexError, match="another process"):
        late.add([Document("a new clerk", "x")], progress=False)
    assert "x" not in store
    with pytest.raises(StaleIndexError, match="another process"):
        other.update_vectors(["1"], torch.ones(1, 32))
    with pytest.raises(StaleIndexError, match="another process"):
        other.fingerprint = encoder().fingerprint
    assert store.fingerprint == encoder(1).fingerprint
    assert other.fingerprint == encoder(1).fingerprint  # which it has seen by now
    other.update_vectors(["1"], torch.ones(1, 32))


def test_documents_that_leave_or_come_while_all_are_embedded(
    database: str, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(database, "moving")
    columns = "text, metadata, media, embedding"

    def move() -> None:
        sql("DELETE FROM moving WHERE id = '3'")
        sql(f"INSERT INTO moving (id, {columns}) SELECT 'new', {columns} FROM moving WHERE id = '4'")

    DenseRetriever(Interrupted(1, move), store).refresh(progress=False)
    assert "1 of 20 documents have left public.moving" in caplog.text
    assert torch.equal(store.vectors(["new"]), store.vectors(["4"]))
    assert store.fingerprint == encoder(1).fingerprint
    with pytest.raises(InputError, match="no document has the id '3'"):
        store.rebuild("next").put(["3"], torch.ones(1, 32))


def test_rows_that_came_without_a_vector_get_one(database: str, sql: Sql, caplog: pytest.LogCaptureFixture) -> None:
    theirs(sql, "late")
    sql("INSERT INTO late VALUES ('new', 'clerk 99 holds key 5'), ('gone', 'clerk 100')")
    rag = from_pgvector(database, "late", encoder=encoder(), columns=Columns())
    store = rag.dense.store
    assert isinstance(store, PgVectorStore)
    assert store.fingerprint == encoder().fingerprint
    assert "new" not in [hit.document.id for hit in rag.retrieve("clerk 99 holds key 5", k=22)]
    with pytest.raises(StoreError, match=r"'new' has no vector; call retriever.refresh\(\)"):
        store.vectors(["new"])
    batches = [[each.id for each in batch] for batch in store.lacking(1)]
    assert batches == [["gone"], ["new"]]
    sql("DELETE FROM late WHERE id = 'gone'")
    store.update_vectors(["gone", "new"], encoder().encode_documents(["clerk 100", "clerk 99 holds key 5"]))
    assert "1 of 2 documents have left" in caplog.text
    assert rag.retrieve("clerk 99 holds key 5", k=1)[0].document.id == "new"
    assert list(store.lacking(9)) == list(filled(database, "never late").lacking(9)) == []


def test_refresh_embeds_rows_that_came_without_a_vector(database: str, sql: Sql) -> None:
    theirs(sql, "freshened")
    rag = from_pgvector(database, "freshened", encoder=encoder(), columns=Columns())
    sql("INSERT INTO freshened VALUES ('new', 'clerk 99 holds key 5')")
    assert rag.dense.refresh(progress=False) == 1
    assert rag.retrieve("clerk 99 holds key 5", k=1)[0].document.id == "new"


@pytest.mark.parametrize(
    ("key", "id", "as_it_is"),
    [("bigint", "007", "7"), ("bigint", "0042", "42"), ("uuid", "A" * 32, "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa")],
)
def test_an_id_that_would_be_another_is_refused(database: str, sql: Sql, key: str, id: str, as_it_is: str) -> None:
    sql("DROP TABLE IF EXISTS keyed")
    sql(f"CREATE TABLE keyed (id {key} PRIMARY KEY, text text, embedding vector(2))")
    if key == "bigint":
        sql("INSERT INTO keyed VALUES (7, 'seven', '[1,0]')")
    store = PgVectorStore(database, "keyed", columns=Columns())
    there = list(store.documents())
    with pytest.raises(InputError, match=f"the id '{id}' as '{as_it_is}'"):
        store.add([Document("bond", id)], torch.ones(1, 2))
    assert list(store.documents()) == there


def test_an_id_that_is_equal_to_another_for_the_database_is_refused(database: str, sql: Sql) -> None:
    sql("CREATE TABLE decimals (id numeric PRIMARY KEY, text text, embedding vector(2))")
    sql("INSERT INTO decimals VALUES (1.0, 'one', '[1,0]')")
    store = PgVectorStore(database, "decimals", columns=Columns())
    with pytest.raises(InputError, match=r"the id '1' as '1\.0'"):
        store.add([Document("another", "1")], torch.ones(1, 2))
    store.add([Document("two", "2"), Document("new", "1.0")], torch.ones(2, 2))
    assert [each.text for each in store.documents()] == ["new", "two"]


def test_numbers_of_many_digits_are_the_floats_that_python_reads(database: str, sql: Sql) -> None:
    sql("CREATE TABLE digits (id text PRIMARY KEY, text text, embedding vector(1), meta jsonb)")
    many = ["0.33333333333333333333", "0.10000000000000001", "0.1", "1.00000000000000000001", "-0.30000000000000000001",
            "1e-400", "1e400", "-1e400", "0", "9007199254740993", "1e-310", "[0.10000000000000001]"]  # fmt: skip
    for n, number in enumerate(many):
        sql("INSERT INTO digits VALUES (%s, '', '[1]', %s)", [f"{n:02}", f'{{"v": {number}}}'])
    store, memory = PgVectorStore(database, "digits", columns=Columns(metadata="meta")), MemoryStore()
    memory.add(list(store.documents()), torch.ones(len(many), 1))
    for value in (1 / 3, 0.1, 1, -0.3, 0, 0.0, 2**53 - 1, 2**53, 1e-310, [0.1]):
        for operator in ("==", "!=", "<", "<=", ">", ">=", "in", "not in"):
            if isinstance(value, list) and operator in ("<", "<=", ">", ">="):
                continue
            one = {"field": "v", "operator": operator, "value": [value] if operator.endswith("in") else value}
            for where in (one, {"operator": "NOT", "conditions": [one]}):
                hits = [
                    [hit.document.id for hit in each.search(torch.ones(1, 1), 99, where)[0]] for each in (store, memory)
                ]
                assert hits[0] == hits[1], where


@pytest.mark.parametrize("name", ["x" * 64, "ü" * 32, "a\ud800"])
def test_a_name_that_postgresql_cuts_is_refused(database: str, name: str) -> None:
    with pytest.raises(InputError, match="at most 63 bytes"):
        PgVectorStore(database, name)
    with pytest.raises(InputError, match="at most 63 bytes"):
        PgVectorStore(database, "fine", columns=Columns(text=name))
    assert len(PgVectorStore(database, "x" * 63)) == 0


def test_a_session_may_be_another_at_each_transaction(database: str) -> None:
    store = filled(database, "pooled")
    for _ in range(9):
        store.get(["3"])
        store.search(torch.ones(1, 32), 2)
    store.update_vectors(["3", "4"], torch.ones(2, 32))
    stream = store.documents()
    next(stream)
    del stream
    # what a pooler does before it lends the session to the next one
    store._database._open().pgconn.exec_(b"DISCARD ALL")
    assert store.get(["3"]) == [Document(TEXTS[3], "3")]
    assert len(store.search(torch.ones(1, 32), 2)[0]) == 2
    store.update_vectors(["3", "4"], torch.ones(2, 32))


@pytest.mark.parametrize("end", [0, 1999])
def test_a_table_half_written_is_told_by_its_ends(database: str, sql: Sql, end: int) -> None:
    sql("DROP TABLE IF EXISTS ends")
    sql("CREATE TABLE ends AS SELECT n AS id, 'clerk' AS text, %s::vector AS embedding FROM generate_series(0, 1999) n",
        [str(encoder().encode_documents(["clerk"])[0].tolist())])  # fmt: skip
    sql("ALTER TABLE ends ADD PRIMARY KEY (id)")
    assert from_pgvector(database, "ends", encoder=encoder(), columns=Columns()).dense.store.fingerprint != UNKNOWN
    sql("UPDATE ends SET embedding = embedding * embedding WHERE id = %s", [end])
    assert from_pgvector(database, "ends", encoder=encoder(), columns=Columns()).dense.store.fingerprint == UNKNOWN


def test_a_key_that_is_looked_at_later_is_none(database: str, sql: Sql) -> None:
    sql("CREATE TABLE deferred (id text PRIMARY KEY DEFERRABLE, text text, embedding vector(2))")
    with pytest.raises(InputError, match="may hold one id twice, if only for a while"):
        PgVectorStore(database, "deferred", columns=Columns()).add([Document("x", "1")], torch.ones(1, 2))


def test_who_may_not_note_is_told_what_to_do(database: str, sql: Sql) -> None:
    theirs(sql, "unnoted")
    filled(database, "some noted one")
    sql("CREATE ROLE onlooker LOGIN")
    sql("GRANT SELECT ON unnoted TO onlooker")
    onlooker = make_conninfo(database, user="onlooker")
    sql("GRANT SELECT ON fedrag_stores TO onlooker")
    with pytest.raises(StoreError, match=r"which this role may not write; call from_pgvector once as a role that may"):
        from_pgvector(onlooker, "unnoted", encoder=encoder(), columns=Columns())
    from_pgvector(database, "unnoted", encoder=encoder(), columns=Columns())
    rag = from_pgvector(onlooker, "unnoted", encoder=encoder(), columns=Columns())
    assert rag.retrieve(TEXTS[3], k=1)[0].document.text == TEXTS[3]


def test_who_may_write_notes_need_not_make_tables(database: str, sql: Sql) -> None:
    filled(database, "noted by another")
    sql("CREATE ROLE noter LOGIN")
    sql('GRANT SELECT, INSERT, UPDATE ON fedrag_stores, "noted by another" TO noter')
    store = PgVectorStore(make_conninfo(database, user="noter"), "noted by another")
    store.fingerprint = "next"
    assert store.fingerprint == "next"


def test_a_database_too_busy_to_tell_its_types_is_a_store_error(database: str, sql: Sql) -> None:
    store = PgVectorStore(make_conninfo(database, options="-c lock_timeout=100"), "anything")
    sql("BEGIN")
    sql("LOCK TABLE pg_type IN ACCESS EXCLUSIVE MODE")
    try:
        with pytest.raises(StoreError, match="lock timeout"):
            len(store)
    finally:
        sql("ROLLBACK")
    assert len(store) == 0
