"""A Qdrant collection as a knowledge store, and collections of other libraries' making."""

from __future__ import annotations

import pytest
from qdrant_client import QdrantClient

from fedrag.integrations.qdrant import QdrantStore
from stores.contract import StoreContract


class TestInMemory(StoreContract):
    @pytest.fixture
    def store(self):
        return lambda: QdrantStore(QdrantClient(":memory:"), "handbook")
