"""A real PostgreSQL with pgvector, started in a temporary folder and stopped at the end."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the connection string of a database that has nothing in it, and a user who may do everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders of the system that are not there
        from pgserver.postgres_server import PostgresServer
    folder = Path(tempfile.mkdtemp(prefix="pg")).resolve()  # short, for it holds a socket
    try:
        server = PostgresServer(folder, cleanup_mode="delete")
    except subprocess.TimeoutExpired:  # of ten seconds, on a loaded machine: it is up by now, or starts again
        server = PostgresServer(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
