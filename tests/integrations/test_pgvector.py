"""A table of PostgreSQL as a knowledge store, on a PostgreSQL that the tests start."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import torch
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fedrag import CausalLM, DenseRetriever, Document, Media, MemoryStore, RAGSystem, SentenceEncoder
from fedrag.errors import InputError, MissingExtraError, StaleIndexError, StoreError
from fedrag.integrations import pgvector_database
from fedrag.integrations.mirror import UNKNOWN
from fedrag.integrations.pgvector import Columns, PgVectorStore, from_pgvector
from fedrag.integrations.pgvector_filters import narrow
from stores.contract import StoreContract, brute_force, ids_and_scores, some
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

NAMES = (f'store "{n}"' for n in count())
TEXTS = [f"clerk {n} holds key {n * 7}" for n in range(20)]
WIDTH = 32


@pytest.fixture
def new(database: str) -> Iterator[Any]:
    """Makes a store over a new table, or over the one of a name; all are closed at the end."""
    made: list[PgVectorStore] = []

    def make(table: str | None = None, source: Any = database, **settings: Any) -> PgVectorStore:
        made.append(PgVectorStore(source, table or next(NAMES), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sql(database: str) -> Iterator[Any]:
    """One's own connection, as anybody has it."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        yield connection.execute


class TestOnPostgreSQL(StoreContract):
    @pytest.fixture
    def store(self, new: Any) -> Any:
        return new


def encoder(seed: int = 0) -> SentenceEncoder:
    return SentenceEncoder(tiny_sentence_transformer(kind="static", seed=seed, width=WIDTH))


METADATA: list[dict[str, Any]] = [
    {"v": 1}, {"v": 1.0}, {"v": True}, {"v": "1"}, {"v": [1]}, {"v": ["a", "b"]}, {"v": "a"}, {"v": None}, {"v": []},
    {}, {"v": {"deep": "a"}}, {"v.deep": "a"}, {"v": {"deep": 2}, "v.deep": "b"}, {"v": 2**53 + 1}, {"v": "b"},
    {"v": False}, {"v": 0}, {"v": -3.5}, {"w": 'a"b', 'q"': 1}, {"v": {}}, {"v": 10**400}, {"": 1}, {"v": "B"},
    {"v": {"0": "a"}}, {"v": ["a"]}, {"v": "\u00e9"}, {"v": "%s"}, {"50%": 1}, {"v": float(2**53)}, {"v": 0.1 + 0.2},
]  # fmt: skip
STRANGE: list[dict[str, Any]] = [{"v": "a\0"}, {"v": 1e23}, {"v": "\ud800"}, {"v": 10**23}, {"v": "\U0001f600"}]
COMPARISONS: list[tuple[str, Any]] = [
    ("==", 1), ("==", True), ("==", "a"), ("==", None), ("==", ["a", "b"]), ("==", {"deep": "a"}), ("==", 2**53 + 1),
    ("==", 10**400), ("!=", 1), ("!=", "a"), ("in", ["a", 1, None]), ("in", []), ("in", [[1], "b"]), ("not in", ["a"]),
    (">", 0), (">=", 1), ("<", 1), ("<=", -3.5), (">", "a"), ("<=", "a"), (">", 10**400), ("<", float("inf")),
    ("exists", True), ("exists", False), ("==", 2**53), ("==", "a\0"), ("==", 1e23), ("==", 10**23), ("not in", []),
    ("==", "\ud800"), ("==", 0.3), ("==", float("nan")), ("==", {1: 2}), ("==", "%s"), ("<", "b"),
]  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("field", ["v", "meta.v", "v.deep", "v.0", "w", 'q"', "50%", "", "a..b", "\0"])
@pytest.mark.capability("pgvector", "filter")
def test_filters_mean_what_they_mean_everywhere(new: Any, sql: Any, field: str, own: bool) -> None:
    documents = [Document("", f"d{n}", each) for n, each in enumerate(METADATA + (STRANGE if own else []))]
    vectors = torch.randn(len(documents), 4, generator=torch.Generator().manual_seed(0))
    if own:
        store = new()
    else:
        sql("DROP TABLE IF EXISTS filtered")
        sql("CREATE TABLE filtered (id text PRIMARY KEY, text text, embedding vector(4), meta jsonb)")
        store = new("filtered", columns=Columns(metadata="meta"))
    store.add(documents, vectors)
    query = torch.ones(1, 4)
    for operator, value in COMPARISONS:
        one = {"field": field, "operator": operator, "value": value}
        other = {"field": "v", "operator": "==", "value": "a"}
        for where in (
            one,
            {"operator": "NOT", "conditions": [one]},
            {"operator": "and", "conditions": [one, {"operator": "NOT", "conditions": [other]}]},
            {"operator": "OR", "conditions": [one, other]},
        ):
            found = ids_and_scores(store.search(query, 3, where)[0])
            assert found == brute_force(documents, vectors, query[0], 3, where), where


@pytest.mark.parametrize(
    "where",
    [
        {"field": "even", "operator": "==", "value": True},
        {"field": "row", "operator": "in", "value": [3, 4.0]},
        {"field": "row", "operator": "<", "value": 4.5},
        {"field": "deep.tag", "operator": ">", "value": "t1"},
        {"operator": "NOT", "conditions": [{"field": "row", "operator": ">", "value": 3}]},
        {"operator": "OR", "conditions": [{"field": "row", "operator": "==", "value": n} for n in (1, 8)]},
        {"field": "absent", "operator": "exists", "value": False},
    ],
)
def test_postgresql_itself_narrows_the_search(new: Any, sql: Any, where: dict[str, Any]) -> None:
    documents, vectors = some(50)
    new("narrowed").add(documents, vectors)
    said = narrow(where)
    assert said is not None
    assert said.exact
    ((found,),) = sql(f"SELECT count(*) FROM narrowed AS found WHERE {said.text}", said.values)
    assert found == len(brute_force(documents, vectors, vectors[0], 50, where)) > 0


def test_what_postgresql_cannot_narrow_is_looked_for_until_it_is_found(new: Any) -> None:
    documents, vectors = some(400)
    store = new()
    store.add(documents, vectors)
    worst = [int(id[1:]) for id, _ in brute_force(documents, vectors, torch.ones(8), 400)[-4:]]
    where = {"operator": "NOT", "conditions": [{"field": "row", "operator": "not in", "value": [*worst, 2**60]}]}
    assert narrow(where) is None
    found = ids_and_scores(store.search(torch.ones(1, 8), 3, where)[0])
    assert found == brute_force(documents, vectors, torch.ones(8), 3, where)
    assert len(found) == 3


def test_what_postgresql_cannot_hold_comes_back_as_it_was(new: Any) -> None:
    documents = [
        Document("\ue000 private", "\ue000"),
        Document("\\0 and \\", "\\0"),
        Document("\0", "\0", {"\0": "\0", "a": [1e23, 5e-324, -0.0]}),
        Document("x", "\ue000\\0", {"half": "\ud800", "whole": "\U0001f600"}, (Media(b"\0", "a/ö"), Media(b"", ""))),
    ]
    store = new()
    store.add(documents, torch.eye(4))
    assert store.get([each.id for each in documents]) == documents
    assert [hit.document for hit in store.search(torch.eye(4)[2:3], 1)[0]] == documents[2:3]
    assert isinstance(store.get(["\0"])[0].metadata["a"][0], float)
    assert "\ud800" not in store
    assert store.remove(["\0", "\ud800"]) == 1


@pytest.mark.capability("pgvector", "save and load")
def test_another_process_knows_everything(new: Any) -> None:
    documents, vectors = some(20)
    store = new("kept")
    store.fingerprint = "encoder"
    store.add(documents, vectors)
    store.rebuild("next").put(["d3", "d4"], torch.ones(2, 5))
    opened = new("kept")
    assert opened.fingerprint == "encoder"
    assert list(opened.documents()) == documents
    assert torch.equal(opened.vectors([document.id for document in documents]), vectors)
    assert [len(batch) for batch in opened.rebuild("next").missing(99)] == [18]  # it goes on where it stopped


def test_an_index_of_ones_own_misses_nothing_unless_it_may(new: Any, sql: Any) -> None:
    documents, vectors = some(300, 16)
    store = new("indexed")
    store.add(documents, vectors)
    sql("CREATE INDEX ON indexed USING ivfflat (embedding vector_ip_ops) WITH (lists = 100)")
    sql("ANALYZE indexed")
    truth = [[id for id, _ in brute_force(documents, vectors, query, 40)] for query in vectors[:20]]

    def ids(store: PgVectorStore) -> list[list[str]]:
        store._database._open().execute("SET enable_seqscan = off")  # few rows are sooner read than an index
        return [[hit.document.id for hit in hits] for hits in store.search(vectors[:20], 40)]

    assert ids(store) == truth
    found = ids(new("indexed", exact=False))
    assert found != truth  # it is the index that was asked
    assert all(set(near) & set(best) for near, best in zip(found, truth, strict=True))


def test_a_long_vector_that_float32_misplaces_is_found(new: Any) -> None:
    long = torch.zeros(1, 64)
    long[0, :48:16] = torch.tensor([1e8, 1.0, -1e8])  # its product with ones is 1, and 0 when it is added up in float32
    others = torch.zeros(100, 64)
    others[:, 3] = torch.linspace(0.1, 0.9, 100)
    store = new()
    store.add([Document("", f"{n}") for n in range(101)], torch.cat([others, long]))
    assert [(hit.document.id, hit.score) for hit in store.search(torch.ones(1, 64), 1)[0]] == [("100", 1.0)]


def theirs(sql: Any, table: str, *, vectors: bool = True) -> list[Document]:
    """A table as a person makes it: numbers for ids, columns of other names, one more column that nobody tells of."""
    sql(
        f"CREATE TABLE {table} (nr bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, content varchar(99), "
        "vec vector(32), meta jsonb, seen date DEFAULT '2026-01-01')"
    )
    made = encoder().encode_documents(TEXTS).tolist() if vectors else [None] * len(TEXTS)
    for n, (text, vector) in enumerate(zip(TEXTS, made, strict=True)):
        row = [text, None if vector is None else str(vector), None if n == 0 else f'{{"row": {n}}}']
        sql(f"INSERT INTO {table} (content, vec, meta) VALUES (%s, %s, %s)", row)
    return [Document(text, str(n + 1), {} if n == 0 else {"row": n}) for n, text in enumerate(TEXTS)]


THEIRS = Columns(id="nr", text="content", vector="vec", metadata="meta")


@pytest.mark.parametrize("vectors", [True, False])
def test_a_table_that_was_there_is_read_and_only_its_vectors_change(
    database: str, sql: Any, new: Any, vectors: bool
) -> None:
    table = "taken_whole" if vectors else "taken_bare"
    documents = theirs(sql, table, vectors=vectors)
    there = sql(f"SELECT nr, content, meta, seen FROM {table} ORDER BY nr").fetchall()
    columns = [each.metadata for each in documents]
    retriever = from_pgvector(database, table, encoder=encoder(), columns=THEIRS).dense
    store = retriever.store
    assert list(store.documents()) == documents
    assert store.get(["7", "3"]) == [documents[6], documents[2]]
    assert ("7" in store, "007" in store, "x" in store, store.remove(["007", "x"])) == (True, False, False, 0)
    assert store.fingerprint == (encoder().fingerprint if vectors else UNKNOWN)
    if vectors:
        (hits,) = retriever.retrieve([TEXTS[3]], 2, {"field": "row", "operator": ">", "value": 2})
        assert hits[0].document == documents[3]
    else:
        with pytest.raises(StaleIndexError):
            retriever.retrieve([TEXTS[3]], 2)
        with pytest.raises(StoreError, match=r"'1' has no vector.*refresh"):
            store.vectors(["1"])
    tuned = from_pgvector(database, table, encoder=encoder(1), columns=THEIRS).dense
    assert tuned.store.fingerprint == (encoder().fingerprint if vectors else UNKNOWN)
    with pytest.raises(StaleIndexError):
        tuned.retrieve(["clerk 3"], 1)
    assert tuned.refresh(progress=False) == 20
    assert sql(f"SELECT nr, content, meta, seen FROM {table} ORDER BY nr").fetchall() == there
    wanted = encoder(1).encode_documents(TEXTS)
    assert torch.allclose(tuned.store.vectors([each.id for each in documents]), wanted, atol=1e-6)
    assert from_pgvector(database, table, encoder=encoder(1), columns=THEIRS).dense.store.fingerprint != UNKNOWN
    assert columns == [each.metadata for each in tuned.store.documents()]
    for one in (store, tuned.store):
        one.close()


def test_new_documents_take_the_columns_of_a_table_that_was_there(new: Any, sql: Any) -> None:
    theirs(sql, "filled")
    sql("UPDATE filled SET seen = '2020-01-01' WHERE nr = 5")
    store = new("filled", columns=THEIRS)
    store.add([Document("new", "99", {"row": 99}), Document("other", "5")], torch.eye(32)[:2])
    assert sql("SELECT content, meta, seen::text FROM filled WHERE nr IN (5, 99) ORDER BY nr").fetchall() == [
        ("other", {}, "2020-01-01"),
        ("new", {"row": 99}, "2026-01-01"),
    ]
    assert store.vectors(["99"]).tolist() == torch.eye(32)[:1].tolist()
    for document in [
        Document("a\0", "1"),
        Document("", "1", media=(Media(b"", "a/b"),)),
        Document("", "1", {"a": 1e23}),
    ]:
        with pytest.raises(InputError, match=r"holds what the columns of public.filled do not"):
            store.add([document], torch.eye(32)[:1])
    with pytest.raises(StoreError, match=r"refuses: invalid input syntax for type bigint.*nothing of this call"):
        store.add([Document("", "100"), Document("", "no number")], torch.eye(32)[:2])
    assert "100" not in store
    with pytest.raises(InputError, match="no column for it"):
        new("filled", columns=Columns(id="nr", text="content", vector="vec")).add(
            [Document("", "1", {"a": 1})], torch.eye(32)[:1]
        )


def test_tables_that_cannot_serve_say_why(new: Any, sql: Any, database: str) -> None:
    sql("CREATE TABLE twice (id text NOT NULL, text text, embedding vector(2), meta jsonb, numbers real[])")
    for columns, message in [
        (None, r"twice has no column 'metadata', but \['embedding', 'id',"),
        (Columns(), r'run: ALTER TABLE public.twice ADD PRIMARY KEY \("id"\)'),
        (Columns(vector="numbers"), "ADD PRIMARY KEY"),
    ]:
        with pytest.raises(InputError, match=message):
            len(new("twice", columns=columns))
    sql("ALTER TABLE twice ADD PRIMARY KEY (id)")
    with pytest.raises(InputError, match=r"'numbers' of public.twice is of type real\[\]"):
        len(new("twice", columns=Columns(vector="numbers")))
    sql("INSERT INTO twice VALUES ('a', 'x', '[1,2]', '[3]')")
    with pytest.raises(StoreError, match=r"metadata of row 'a'.*no JSON object"):
        new("twice", columns=Columns(metadata="meta")).get(["a"])
    with pytest.raises(InputError, match="3 wide, those of the store 2"):
        new("twice", columns=Columns()).add([Document("", "b")], torch.ones(1, 3))
    with pytest.raises(InputError, match=r"no table public.nowhere"):
        from_pgvector(database, "nowhere", encoder=encoder())
    with pytest.raises(InputError, match=r"no table public.nowhere; leave out columns="):
        new("nowhere", columns=Columns()).add([Document("x")], torch.ones(1, 2))
    with pytest.raises(InputError, match="'50%' cannot name"):
        new("50%")
    with pytest.raises(StoreError, match='schema "elsewhere" does not exist'):
        new("x", schema="elsewhere").add([Document("x")], torch.ones(1, 2))


SECRET = "s3cret/word"


def test_a_lost_connection_is_told_without_the_password_and_made_anew(database: str, new: Any, sql: Any) -> None:
    host = conninfo_to_dict(database)["host"]
    store = new(source=f"postgresql://postgres:{quote(SECRET, safe='')}@/postgres?host={host}")
    documents, vectors = some(600)
    store.add(documents, vectors)
    stream = store.documents()
    next(stream)
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE 'COMMIT'"
    )
    sql(kill)
    with pytest.raises(StoreError, match=r"connection to .*/postgres was lost") as caught:
        len(store)
    assert len(store) == 600
    with pytest.raises(StoreError, match="lost in a stream"):
        list(stream)
    closed = make_conninfo(host="127.0.0.1", port=1, dbname="clinic", user="clerk", password=SECRET)
    with pytest.raises(StoreError, match=r"cannot connect to 127.0.0.1:1/clinic \(.*refused") as unreachable:
        len(new(source=closed))
    with pytest.raises(InputError, match="not one of PostgreSQL") as malformed:
        new(source=f"host=x {SECRET} user=y")
    told = [str(caught.value), str(unreachable.value), str(malformed.value), repr(store), repr(new(source=closed))]
    assert not any(SECRET in each or "s3cret" in each for each in told)
    assert all(error.value.__cause__ is None for error in (caught, unreachable, malformed))


def test_a_function_may_connect(database: str, new: Any) -> None:
    store = new(source=lambda: psycopg.connect(database))
    store.add([Document("x", "x")], torch.ones(1, 2))
    assert len(store) == 1
    store.close()
    assert len(store) == 1


def test_the_extension_is_made_or_asked_for(database: str, new: Any, sql: Any) -> None:
    sql("CREATE DATABASE bare")
    sql("CREATE ROLE clerk LOGIN")
    store = new(source=make_conninfo(database, dbname="bare", user="clerk"))
    with pytest.raises(StoreError, match=r"/bare has no type 'vector'.*run: CREATE EXTENSION vector"):
        len(store)
    assert len(new(source=make_conninfo(database, dbname="bare"))) == 0
    assert len(store) == 0


def test_who_may_only_read_searches(database: str, new: Any, sql: Any) -> None:
    documents, vectors = some(9)
    store = new("readable")
    store.fingerprint = "e"
    store.add(documents, vectors)
    sql("CREATE ROLE reader LOGIN")
    sql("GRANT SELECT ON readable, fedrag_stores TO reader")
    read = new("readable", source=make_conninfo(database, user="reader"))
    assert read.search(vectors[:2], 3) == store.search(vectors[:2], 3)
    assert (read.fingerprint, list(read.documents()) == documents) == ("e", True)
    with pytest.raises(StoreError, match="permission denied"):
        read.add(documents, vectors)


def test_threads_share_a_store_and_see_whole_changes(new: Any) -> None:
    documents, _ = some(64)
    store = new("shared")
    store.add(documents, torch.ones(64, 8))
    errors: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        try:
            while not over.is_set():
                (hits,) = store.search(torch.ones(1, 8), 64)
                assert len(hits) == 64
                assert len({hit.score for hit in hits}) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    other = new("shared")
    for step in range(2, 12):
        other.add(documents, torch.full((64, 8), float(step)))
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.search(torch.ones(1, 8), 1)[0][0].score == 88.0


def test_writers_take_turns(new: Any) -> None:
    documents, _ = some(200)
    errors: list[BaseException] = []

    def write(turn: int) -> None:
        store = new("written")
        order = torch.randperm(200, generator=torch.Generator().manual_seed(turn)).tolist()
        try:
            for _ in range(3):  # in another order each: row by row they would wait for each other for ever
                store.add([documents[i] for i in order], torch.full((200, 8), float(turn)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(turn,)) for turn in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = new("written")
    assert len(store) == 200
    assert len(set(store.vectors([each.id for each in documents])[:, 0].tolist())) == 1  # those of one call


def test_a_stream_left_in_the_middle_keeps_nobody_waiting(new: Any, sql: Any) -> None:
    documents, vectors = some(600)
    store = new("streamed")
    store.add(documents, vectors)
    stream = store.documents()
    next(stream)
    sql("SET lock_timeout = '2s'")
    sql("ALTER TABLE streamed ADD COLUMN another text")
    assert len(list(stream)) == 599
    del stream
    next(store.documents())
    len(store)
    ((left,),) = store._database._open().execute("SELECT count(*) FROM pg_cursors").fetchall()
    assert left == 0


def test_a_text_changed_by_sql_while_its_vector_is_made_wants_another(new: Any, sql: Any) -> None:
    documents, vectors = some(3)
    store = new("changed")
    store.add(documents, vectors)
    rebuild = store.rebuild("new")
    (batch,) = rebuild.missing(9)
    sql("UPDATE changed SET text = 'another' WHERE id = 'd1'")
    rebuild.put([each.id for each in batch], torch.ones(3, 8))
    with pytest.raises(StoreError, match="1 of 3"):
        rebuild.commit()
    ((waiting,),) = rebuild.missing(9)
    assert waiting.text == "another"
    rebuild.put(["d1"], torch.ones(1, 8))
    rebuild.commit()
    assert sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'fedrag_rebuild%'").fetchone() == (
        sql("SELECT count(*) FROM fedrag_stores WHERE rebuilding <> ''").fetchone()
    )


def test_a_forked_process_opens_its_own_connection(new: Any) -> None:
    store = new()
    store.add([Document("x")], torch.ones(1, 2))
    mine = store._database._open().info.backend_pid
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            os.write(writing, f"{len(store)} {store._database._open().info.backend_pid != mine}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert os.read(reading, 99) == b"1 True"
    os.close(reading)
    assert len(store) == 1
    assert store._database._open().info.backend_pid == mine


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrag.optional.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"fedrag\[pgvector\]"):
        importlib.reload(pgvector_database)


@pytest.mark.capability("pgvector", "sync", "async", "stream", "batch", "save and load")
def test_a_system_over_a_table_answers_as_one_in_memory(database: str, new: Any, sql: Any, tmp_path: Path) -> None:
    documents = theirs(sql, "asked")
    generator = CausalLM(tiny_llama(vocab=len(tiny_tokenizer())), tiny_tokenizer(), max_new_tokens=4)
    rag = from_pgvector(database, "asked", encoder=encoder(), generator=generator, top_k=2, columns=THEIRS)
    memory = DenseRetriever(encoder(), MemoryStore())
    memory.add(documents, progress=False)
    late = {"field": "row", "operator": ">=", "value": 18}
    answer = rag.query(TEXTS[5], where=late)
    assert [hit.document for hit in answer.hits] == [hit.document for hit in memory.retrieve([TEXTS[5]], 2, late)[0]]
    assert asyncio.run(rag.aquery(TEXTS[5], where=late)) == answer
    assert "".join(rag.stream(TEXTS[5], where=late)) == answer.text
    questions = TEXTS[:6]
    assert [one.hits for one in rag.query_batch(questions)] == [rag.query(question).hits for question in questions]
    assert len(rag.query(TEXTS[5], k=4).hits) == 4
    rag.save(tmp_path / "rag")
    with pytest.raises(InputError, match="store=<the PgVectorStore>"):
        RAGSystem.load(tmp_path / "rag")
    assert RAGSystem.load(tmp_path / "rag", store=new("asked", columns=THEIRS)).query(TEXTS[5], where=late) == answer
    rag.dense.store.close()


def test_an_index_of_ones_own_lives_through_a_rebuild_of_any_width(new: Any, sql: Any) -> None:
    documents, vectors = some(30)
    store = new("widened")
    store.add(documents, vectors)
    sql("CREATE INDEX mine ON widened USING hnsw (embedding vector_ip_ops)")
    ids = [each.id for each in documents]
    for width in (8, 5):
        made = torch.randn(30, width, generator=torch.Generator().manual_seed(width))
        rebuild = store.rebuild(f"{width} wide")
        rebuild.put(ids, made)
        rebuild.commit()
        assert torch.equal(store.vectors(ids), made)
        assert ids_and_scores(store.search(made[:1], 4)[0]) == brute_force(documents, made, made[0], 4)
        assert sql("SELECT count(*) FROM pg_indexes WHERE indexname = 'mine'").fetchone() == (1,)
    with pytest.raises(psycopg.errors.NotNullViolation):
        sql("UPDATE widened SET embedding = NULL")


def test_a_schema_has_its_own_notes(new: Any, sql: Any) -> None:
    sql('CREATE SCHEMA "the clinic"')
    store, other = new("same", schema="the clinic"), new("same")
    store.fingerprint = "one"
    store.add([Document("x", "x")], torch.ones(1, 2))
    assert (len(other), other.fingerprint, len(store), store.fingerprint) == (0, "", 1, "one")


def test_ids_that_are_uuids_and_vectors_of_no_width(new: Any, sql: Any) -> None:
    sql("CREATE TABLE loose (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), text text, embedding vector)")
    sql("INSERT INTO loose (text, embedding) VALUES ('x', '[1,2]'), ('y', '[2,1]'), (NULL, NULL)")
    store = new("loose", columns=Columns())
    documents = {each.text: each for each in store.documents()}
    assert sorted(documents) == ["", "x", "y"]
    (hits,) = store.search(torch.tensor([[0.0, 1.0]]), 9)
    assert [(hit.document, hit.score) for hit in hits] == [(documents["x"], 2.0), (documents["y"], 1.0)]
    assert ("no uuid" in store, documents["x"].id in store, documents["x"].id.upper() in store) == (False, True, False)
    assert store.remove(["no uuid", documents["x"].id]) == 1
    rebuild = store.rebuild("wider")
    rebuild.put([documents["y"].id, documents[""].id], torch.eye(3)[:2])
    rebuild.commit()
    assert store.vectors([documents[""].id]).tolist() == [[0.0, 1.0, 0.0]]
    with pytest.raises(InputError, match="2 wide, those of the store 3"):
        store.update_vectors([documents["y"].id], torch.ones(1, 2))


def test_a_filter_decided_in_part_is_not_negated(new: Any) -> None:
    documents, vectors = some(30)
    store = new()
    store.add(documents, vectors)
    far = {"field": "row", "operator": ">", "value": 2**60}  # none is, which PostgreSQL is not asked
    early = {"field": "row", "operator": "<", "value": 9}
    for conditions, many in (
        ([early, far], 30),
        ([{"operator": "AND", "conditions": [early, far]}], 30),
        ([{"operator": "OR", "conditions": [early, far]}], 21),
    ):
        where = {"operator": "NOT", "conditions": conditions}
        found = ids_and_scores(store.search(vectors[:1], 30, where)[0])
        assert found == brute_force(documents, vectors, vectors[0], 30, where)
        assert len(found) == many
