"""A real PostgreSQL with pgvector, started in a temporary folder and stopped at the end."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the connection string of an empty database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders of the system that are not there
        import pgserver
    folder = tempfile.mkdtemp(prefix="pg")  # short, for it holds a socket
    server = pgserver.get_server(folder)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
