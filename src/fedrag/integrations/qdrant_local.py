"""A Qdrant client that is the database itself, in memory or in a folder, asked by one thread at a time.

Such a client keeps its points in lists and arrays of its own, and changes them under the hands of whoever reads them in
another thread: a search beside an insert fails. `RAGSystem.aquery` runs in threads, and so do servers. A client of a
server needs no guard.

>>> client = guarded(QdrantClient(":memory:"))
>>> client.collection_exists("handbook"), isinstance(client, OneAtATime)
(False, True)
"""

from __future__ import annotations

from functools import wraps
from threading import RLock
from typing import Any, cast
from weakref import WeakKeyDictionary

from fedrag.optional import require

require("qdrant_client", extra="qdrant")

from qdrant_client import QdrantClient  # noqa: E402

_LOCKS: WeakKeyDictionary[QdrantClient, Any] = WeakKeyDictionary()  # one for all stores over a client


class OneAtATime:
    """A client whose methods wait for one another."""

    def __init__(self, client: QdrantClient) -> None:
        self._client = client
        self._lock = _LOCKS.setdefault(client, RLock())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what is asked of an object that is still being made, by a copy, say
            raise AttributeError(name)
        found = getattr(self._client, name)
        if not callable(found):
            return found

        @wraps(found)
        def alone(*args: Any, **settings: Any) -> Any:
            with self._lock:
                return found(*args, **settings)

        return alone


def is_local(client: QdrantClient) -> bool:
    """Whether the client is the database itself."""
    return client.init_options.get("location") == ":memory:" or client.init_options.get("path") is not None


def guarded(client: QdrantClient) -> QdrantClient:
    """Return the client, made fit for several threads."""
    return cast(QdrantClient, OneAtATime(client)) if is_local(client) else client
