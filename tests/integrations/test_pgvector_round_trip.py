"""A table of PostgreSQL is taken and the retriever tuned: one's own SQL finds more. A process killed loses nothing."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import torch
from pgvector.psycopg import register_vector
from sentence_transformers import SentenceTransformer

from fedrag import Contrastive, DenseRetriever, Document, Example, RAGTrainer, SentenceEncoder
from fedrag.evaluation.statistics import sign_flip
from fedrag.integrations.pgvector import Columns, PgVectorStore, from_pgvector
from fedrag.quickstart.world import make_world, world_retriever
from systems import arguments
from tiny import tiny_sentence_transformer

WORLD = make_world(seed=1, train=60, dev=40, test=0)
NUMBER = {document.id: number for number, document in enumerate(WORLD.documents)}
Connection = psycopg.Connection[Any]


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        yield connection


def written(connection: Connection, model: SentenceTransformer) -> None:
    """The table "facts", as a person makes it."""
    connection.execute(
        "CREATE TABLE facts (nr int PRIMARY KEY, passage text NOT NULL, about jsonb, embedding vector(128) NOT NULL)"
    )
    vectors = model.encode([document.text for document in WORLD.documents])
    with connection.cursor().copy("COPY facts (nr, passage, about, embedding) FROM STDIN") as copy:
        for number, (document, vector) in enumerate(zip(WORLD.documents, vectors, strict=True)):
            copy.write_row((number, document.text, f'{{"domain": "{document.metadata["domain"]}"}}', vector))


def found(connection: Connection, model: SentenceTransformer) -> np.ndarray:
    """Whether each dev question's passage is among the first three that SQL gives: `[n, 1]`."""
    rows: list[list[float]] = []
    for example, vector in zip(WORLD.dev, model.encode([example.question for example in WORLD.dev]), strict=True):
        nearest = connection.execute("SELECT nr FROM facts ORDER BY embedding <#> %s LIMIT 3", [vector]).fetchall()
        rows.append([float((NUMBER[example.positives[0]],) in nearest)])
    return np.array(rows)


@pytest.mark.capability("pgvector", "take, tune")
def test_ones_own_sql_finds_more_after_tuning(database: str, connection: Connection, tmp_path: Path) -> None:
    model = world_retriever()
    written(connection, model)
    rest = "SELECT nr, passage, about FROM facts ORDER BY nr"
    there, before = connection.execute(rest).fetchall(), found(connection, model)

    columns = Columns(id="nr", text="passage", metadata="about")
    rag = from_pgvector(database, "facts", encoder=SentenceEncoder(model), columns=columns)
    train = [Example(e.question, e.answers, [str(NUMBER[e.positives[0]])]) for e in WORLD.train]
    args = arguments(tmp_path, max_steps=30, per_device_train_batch_size=32, learning_rate=0.1)
    RAGTrainer(Contrastive(rag), train_dataset=train, args=args).train()

    after = found(connection, model)
    assert after.mean() > before.mean() + 0.1
    assert sign_flip(after - before)[0] < 0.01
    assert connection.execute(rest).fetchall() == there
    again = from_pgvector(database, "facts", encoder=SentenceEncoder(model), columns=columns)
    assert again.dense.store.fingerprint == again.dense.encoder.fingerprint  # a later process may ask at once
    (hit,) = again.retrieve(WORLD.dev[0].question, k=1, where={"field": "domain", "operator": "==", "value": "clinic"})
    assert hit.document.metadata["domain"] == "clinic"
    print(f"recall@3 {before.mean():.3f} -> {after.mean():.3f}")


TEXTS = [f"clerk {n}" for n in range(300)]
Work = Callable[[int], None]
"""What another process does; it may tell of it through the file descriptor."""


@contextmanager
def another(work: Work) -> Iterator[int]:
    """Another process at work, killed at the end; yields where it tells of its work."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            work(writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    try:
        yield reading
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def tuned() -> SentenceEncoder:
    return SentenceEncoder(tiny_sentence_transformer(kind="static", seed=1, width=32))


def adding(store: PgVectorStore) -> Work:
    documents = [Document(f"another {n}", f"{n}") for n in range(300)]
    return lambda _: store.add(documents, torch.ones(300, 32))


def refreshing(store: PgVectorStore, *, stops_after: int | None = None) -> Work:
    def work(tell: int) -> None:
        retriever = DenseRetriever(tuned(), store, batch_size=4)  # which puts 64 vectors at a time
        rebuild = store.rebuild(retriever.encoder.fingerprint)
        for number, batch in enumerate(rebuild.missing(64) if stops_after else []):
            if number == stops_after:
                os.write(tell, b"half")
                time.sleep(60)
            rebuild.put([each.id for each in batch], retriever.embed_documents(batch))
        os.write(tell, str(retriever.refresh(progress=False)).encode())

    return work


def filled(database: str, table: str) -> PgVectorStore:
    store = PgVectorStore(database, table)
    retriever = DenseRetriever(SentenceEncoder(tiny_sentence_transformer(kind="static", width=32)), store)
    retriever.add([Document(text, f"{n}") for n, text in enumerate(TEXTS)], progress=False)
    return store


def wait_until_it_waits(connection: Connection) -> None:
    """Until another process waits for the table that this one has locked."""
    end = time.monotonic() + 30
    while connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (0,):
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_until_it_is_gone(connection: Connection) -> None:
    """Until the database has noticed that another process is dead."""
    end = time.monotonic() + 30
    query = "SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid() AND locktype = 'advisory'"
    while connection.execute(query).fetchone() != (0,):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_process_killed_at_any_time_leaves_the_old_or_the_new(database: str, connection: Connection) -> None:
    store = filled(database, "killed")
    encoder = tuned()
    ids = [f"{n}" for n in range(300)]
    old, fingerprint, new = store.vectors(ids), store.fingerprint, encoder.encode_documents(TEXTS)

    def as_it_was() -> bool:
        wait_until_it_is_gone(connection)
        assert torch.equal(store.vectors(ids), old)
        return store.fingerprint == fingerprint and [each.text for each in store.documents()] == TEXTS

    # in the middle of an add: its rows have been sent, and wait to be put in place
    with connection.transaction():
        connection.execute("LOCK TABLE killed IN SHARE MODE")
        with another(adding(store)):
            wait_until_it_waits(connection)
    assert as_it_was()

    # in the middle of a refresh
    with another(refreshing(store, stops_after=2)) as told:
        assert os.read(told, 9) == b"half"
        assert len(store) == 300  # nobody is kept waiting
    assert as_it_was()
    waiting = sum(len(batch) for batch in store.rebuild(encoder.fingerprint).missing(99))
    assert waiting == 300 - 128

    # while the new vectors are put in the place of the old ones
    with connection.transaction():
        connection.execute("LOCK TABLE killed IN ROW EXCLUSIVE MODE")
        with another(refreshing(store)):
            wait_until_it_waits(connection)
    assert as_it_was()

    with another(refreshing(store)) as told:
        assert os.read(told, 9) == b"0"  # all were there: they had only to be put in place
    assert store.fingerprint == encoder.fingerprint
    assert torch.allclose(store.vectors(ids), new, atol=1e-6)
    assert [each.text for each in store.documents()] == TEXTS
    assert connection.execute("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'fedrag_rebuild%'").fetchone() == (
        0,
    )
