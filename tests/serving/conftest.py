"""What several modules of this folder ask of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedrag import RAGSystem
from serving.serving import Running, chatty_system, running


@pytest.fixture(scope="module")
def rag() -> RAGSystem:
    """The system that is served, of the module's own."""
    return chatty_system()


@pytest.fixture(scope="module")
def server(rag: RAGSystem) -> Iterator[Running]:
    """That system behind a server."""
    with running(rag) as server:
        yield server
