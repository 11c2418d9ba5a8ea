"""The rows of documents by their ids: those that are there, and those that must be."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from fedrag.errors import InputError
from fedrag.integrations.pgvector_database import Connection
from fedrag.integrations.pgvector_table import PgTable
from fedrag.integrations.pgvector_text import holdable
from fedrag.optional import require

require("psycopg", extra="pgvector")

import psycopg  # noqa: E402

Row = tuple[Any, ...]  # id, text, metadata, media, and, where it is asked for, the vector
_log = logging.getLogger(__name__)


def found(connection: Connection, table: PgTable, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Row]:
    """Return the rows of those documents that are there, by their ids as they lie in the table."""
    keys = [key for key in map(table.key, ids) if holdable(key)]
    shape = table.shape(connection) if keys else None
    if shape is None:
        return {}
    select = "SELECT {document}, {vector} FROM {table} WHERE " if vectors else "SELECT {document} FROM {table} WHERE "
    try:
        with connection.transaction():
            typed = "{id} = ANY(%s::text[]::{type}[])"
            rows = table.run(connection, select + typed, [keys], type=shape.type).fetchall()
    except psycopg.DataError:  # some id is no number, or no UUID: it is not there, but others may be
        rows = table.run(connection, select + "{id}::text = ANY(%s)", [keys]).fetchall()
    wanted = set(keys)  # and none that is only equal for the database, as the number 07 is to 7
    return {row[0]: row for row in rows if row[0] in wanted}


def known(
    connection: Connection, table: PgTable, ids: Sequence[str], *, vectors: bool = False, given: Collection[str] = ()
) -> dict[int, Row]:
    """Return the rows of these documents by their numbers in `ids`, in order.

    One whose row was `given` to somebody, and is gone since then, is passed over and told of. Any other that is not
    there is an `InputError`.
    """
    there = found(connection, table, ids, vectors=vectors)
    keys = [table.key(id) for id in ids]
    for id, key in zip(ids, keys, strict=True):
        if key not in there and key not in given:
            raise InputError(f"no document has the id {id!r} (of {table.count(connection)} in the store); add it first")
    rows = {number: there[key] for number, key in enumerate(keys) if key in there}
    if len(rows) < len(ids):
        _log.warning(
            "%d of %d documents have left %s, and were passed over", len(ids) - len(rows), len(ids), table.full
        )
    return rows
