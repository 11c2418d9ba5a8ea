"""The k best rows of a table, exactly: PostgreSQL finds rows that may be the best, and these are scored again here.

PostgreSQL adds up products in float32, so it is asked for the most that each row may score, its own product and the
worst error that this can have. What lies below the k-th score found cannot be better; where too much lies above it,
because of ties, or of a filter that PostgreSQL cannot decide, it is asked for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedrag.filters import Predicate, compile_filter
from fedrag.integrations.pgvector_database import Connection
from fedrag.integrations.pgvector_filters import METADATA, Condition, narrow
from fedrag.integrations.pgvector_table import PgTable
from fedrag.optional import require
from fedrag.types import Hit, Where

require("psycopg", extra="pgvector")
require("pgvector", extra="pgvector")

from pgvector import Vector  # noqa: E402
from psycopg.sql import SQL, Composed  # noqa: E402

_AT_ONCE = 64  # queries whose rows are in memory together
_SLACK = 16  # rows asked for above k: enough to see that the k-th ties with none


class Search:
    """Searches in one transaction. Not `exact`, it takes what an index of the table finds."""

    def __init__(self, connection: Connection, table: PgTable, *, exact: bool) -> None:
        self._connection, self._table, self._exact = connection, table, exact

    def best(self, queries: Tensor, k: int, where: Where | None) -> list[list[Hit]]:
        """Return the k best hits per row of `[n, d]`."""
        keep = compile_filter(where) if where is not None else None
        among = narrow(where) if where is not None else None
        statement = self._statement(among)
        found: list[list[Hit]] = [[] for _ in queries]
        waiting, limit = list(range(len(queries))), k + _SLACK
        while waiting:
            unsettled: list[int] = []
            for asked in (waiting[start : start + _AT_ONCE] for start in range(0, len(waiting), _AT_ONCE)):
                with self._connection.pipeline():
                    values = [self._values(queries[i], among, limit) for i in asked]
                    answers = [self._connection.execute(statement, each, binary=True) for each in values]
                for i, answer in zip(asked, answers, strict=True):
                    rows = answer.fetchall()
                    found[i] = self._hits(rows, queries[i], keep)[:k]
                    # a row that was left out scores no more than the last one may
                    if len(rows) == limit and (len(found[i]) < k or found[i][-1].score <= rows[-1][5]):
                        unsettled.append(i)
            waiting, limit = unsettled, 4 * limit
        return found

    def _hits(self, rows: Sequence[Any], query: Tensor, keep: Predicate | None) -> list[Hit]:
        if not rows:
            return []
        vectors = torch.from_numpy(matrix([row[4] for row in rows]))  # [m, d]
        # added up in float64, so that equal vectors have equal scores, whatever else is asked with them
        scores: list[float] = (vectors.double() * query.double()).sum(-1).float().tolist()
        hits = [Hit(self._table.document(row), score) for row, score in zip(rows, scores, strict=True)]
        kept = [hit for hit in hits if keep is None or keep(hit.document.metadata)]
        return sorted(kept, key=lambda hit: (-hit.score, hit.document.id))

    def _statement(self, among: Condition | None) -> Composed:
        """Return the statement that asks for rows, best first: the document, its vector, and the most it may score."""
        most = SQL("%s * vector_norm(found.embedding) - (found.embedding <#> %b) + 1e-37 AS most")
        rows = self._table.sql(
            "(SELECT {id}::text AS id, COALESCE({text}::text, '') AS text, {metadata} AS metadata, {media} AS media, "
            "{vector} AS embedding FROM {table} WHERE {vector} IS NOT NULL) AS found"
        )
        test = "TRUE" if among is None else f"jsonb_typeof({METADATA}) <> 'object' OR {among.text}"
        return SQL("SELECT found.*, {most} FROM {rows} WHERE {test} ORDER BY {order} LIMIT %s").format(
            most=most,
            rows=rows,
            test=SQL(cast(LiteralString, test)),  # words of `narrow`: all that a user gave is a placeholder
            # no index is in the order of the first
            order=SQL("most DESC") if self._exact else SQL("found.embedding <#> %b"),
        )

    def _values(self, query: Tensor, among: Condition | None, limit: int) -> list[Any]:
        error = (len(query) + 2) * 2.0**-22 * float(query.norm())  # twice the worst, for a vector of length 1
        vector = query.numpy()
        test = among.values if among is not None else []
        return [error, vector, *test, *([] if self._exact else [vector]), limit]


def matrix(vectors: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Return vectors as pgvector gives them, one row each: `[n, d]`."""
    return np.stack([vector.to_numpy() if isinstance(vector, Vector) else vector for vector in vectors])
