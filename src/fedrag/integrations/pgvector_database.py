"""One connection to PostgreSQL, made when it is needed and made anew when it was lost; threads take turns.

Whatever PostgreSQL or the network refuses is a `StoreError` that names host and database, and never the password.

>>> Database("postgresql://clerk:secret@db.example/clinic")
Database(db.example/clinic)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from threading import RLock
from typing import Any

from fedrag.errors import InputError, StoreError
from fedrag.optional import require

require("psycopg", extra="pgvector")
require("pgvector", extra="pgvector")

import psycopg  # noqa: E402
from pgvector.psycopg import register_vector  # noqa: E402
from psycopg.conninfo import conninfo_to_dict  # noqa: E402
from psycopg.sql import SQL, Composed, Identifier  # noqa: E402

Connection = psycopg.Connection[tuple[Any, ...]]
Source = str | Callable[[], Connection]
"""A connection string, or a function that connects: for passwords that expire, and settings beyond a string."""
_PAGE = 256  # rows that a stream takes at a time
_NUMBERS = count()


class Database:
    """A PostgreSQL database with the extension pgvector, which is made where it is missing and may be made."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._place = _place(source)
        self._lock = RLock()
        self._connection: Connection | None = None
        self._owner = 0
        self._over: list[str] = []  # cursors that nobody reads any more

    @contextmanager
    def transaction(self, *, writing: str | None = None) -> Generator[Connection, None, None]:
        """Yield a connection in a transaction, which ends with the block; those that write one name take turns.

        Raises:
            StoreError: if the database cannot be reached, or refuses what is asked of it.
        """
        with self._lock:
            connection = self._open()
            try:
                with connection.transaction():
                    over = [self._over.pop() for _ in range(len(self._over))]
                    there = "SELECT name FROM pg_cursors WHERE name = ANY(%s)"  # some may be gone with others' sessions
                    for (name,) in connection.execute(there, [over]).fetchall() if over else ():
                        connection.execute(SQL("CLOSE {}").format(Identifier(name)))
                    if writing is not None:
                        wait_for(connection, writing)
                    yield connection
            except psycopg.Error as error:
                if connection.closed:
                    told = self._reason(error)
                    raise StoreError(f"the connection to {self._place} was lost ({told}); call again") from None
                told = error.diag.message_primary or type(error).__name__
                raise StoreError(
                    f"PostgreSQL at {self._place} refuses: {told}; nothing of this call was kept"
                ) from None

    def stream(self, query: Composed) -> Iterator[tuple[Any, ...]]:
        """Yield rows as they were when the first was asked for. The server holds them; no transaction stays open."""
        name = f"fedrag_{next(_NUMBERS)}"
        with self.transaction() as begun:
            begun.execute(SQL("DECLARE {} NO SCROLL CURSOR WITH HOLD FOR {}").format(Identifier(name), query))
        try:
            while True:
                with self.transaction() as connection:
                    if connection is not begun:
                        raise StoreError(f"the connection to {self._place} was lost in a stream; begin it again")
                    rows = connection.execute(SQL("FETCH {} FROM {}").format(_PAGE, Identifier(name))).fetchall()
                if not rows:
                    return
                yield from rows
        finally:
            if begun is self._connection:
                self._over.append(name)  # not closed here: a stream may be dropped in the middle of another call

    def close(self) -> None:
        """Close the connection; a later call opens another."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:  # held here, for at the exit `os` is gone
        if getattr(self, "_connection", None) is not None and self._owner == getpid():
            self._connection.close()  # pyright: ignore[reportOptionalMemberAccess]

    def __repr__(self) -> str:
        return f"Database({self._place})"

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed or self._owner != os.getpid():
            self._over.clear()
            self._connection = None  # one of the process that this one was forked from is left to it
            self._connection, self._owner = self._connected(), os.getpid()
        return self._connection

    def _connected(self) -> Connection:
        try:
            connection = psycopg.connect(self._source) if isinstance(self._source, str) else self._source()
            try:
                connection.autocommit = True
                connection.prepare_threshold = None  # behind pgbouncer the next server knows no statement of this one
                connection.execute("SET client_encoding TO 'UTF8'")
                if not isinstance(self._source, str):
                    self._place = f"{connection.info.host}/{connection.info.dbname}"
                self._extend(connection)
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as error:
            raise StoreError(
                f"cannot connect to {self._place} ({self._reason(error)}); check that it is up and lets you in"
            ) from None
        return connection

    def _extend(self, connection: Connection) -> None:
        with suppress(psycopg.ProgrammingError):  # the type is not there: the extension is made, where that is allowed
            return register_vector(connection)
        try:
            with connection.transaction():
                wait_for(connection, "extension")
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except psycopg.Error as error:
            told = error.diag.message_primary or type(error).__name__
            raise StoreError(
                f"the database {self._place} has no type 'vector' on its search_path, and making it failed ({told}); "
                "install pgvector on the server, and have its owner run: CREATE EXTENSION vector"
            ) from None

    def _reason(self, error: psycopg.Error) -> str:
        told = str(error) if isinstance(self._source, str) else ""  # PostgreSQL's own words have no password
        return told.partition("\n")[0] or type(error).__name__


def wait_for(connection: Connection, name: str) -> None:
    """Wait until no other transaction of any process holds this name, and hold it until the end of this one."""
    key = int.from_bytes(sha256(f"fedrag {name}".encode()).digest()[:8], signed=True)
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [key])


def _place(source: Source) -> str:
    """Return what may be told of a connection string."""
    if not isinstance(source, str):
        return "the database"
    try:
        found = conninfo_to_dict(source)
    except psycopg.Error:  # whose message repeats parts of the string
        raise InputError(
            "the connection string is not one of PostgreSQL; write postgresql://user:password@host/database"
        ) from None
    host = found.get("host") or found.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
    port = f":{found['port']}" if found.get("port") else ""
    name = found.get("dbname") or os.environ.get("PGDATABASE") or "(default)"
    return f"{host}{port}/{name}"
