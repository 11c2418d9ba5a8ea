"""A table of PostgreSQL as a knowledge store, on a PostgreSQL that the tests start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from fedrag.integrations.pgvector import PgVectorStore
from postgres import postgres
from stores.contract import StoreContract

NAMES = (f"store {n}" for n in count())


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as uri:
        yield uri


class TestOnPostgreSQL(StoreContract):
    @pytest.fixture
    def store(self, database: str):
        made: list[PgVectorStore] = []

        def make() -> PgVectorStore:
            made.append(PgVectorStore(database, next(NAMES)))
            return made[-1]

        yield make
        for one in made:
            one.close()
