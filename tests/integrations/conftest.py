"""What several modules of this folder ask of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from postgres import postgres


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The connection string of a PostgreSQL of the module's own."""
    with postgres() as uri:
        yield uri
