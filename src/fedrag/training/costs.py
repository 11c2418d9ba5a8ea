"""What candidates cost a run, and what it gets for it: numbers beside the loss in the log.

`refreshes` counts the retrievals for all examples, the first one included, and `refresh_seconds` is the time of all of
them, with embedding documents anew where that was due. `candidates_kept` tells whether the last one was worth it: the
mean share of an example's documents that it had before, too. Near 1, refresh less often. `rescore_seconds` is the time
of ranking the kept documents anew; on a GPU it includes waiting for what the step before had left to do.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager


class Costs:
    """The numbers since `clear`."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def clear(self) -> None:
        """Begin a run."""
        self.numbers.clear()

    @contextmanager
    def timed(self, name: str) -> Generator[None]:
        """Add the time that this takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - began)

    def refreshed(self, before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> None:
        """Count a refresh; `before` and `now` hold the ids of every example's documents."""
        self._add("refreshes", 1)
        shares = [len(set(ids) & set(before[key])) / len(set(ids)) for key, ids in now.items() if key in before]
        if shares:
            self.numbers["candidates_kept"] = sum(shares) / len(shares)

    def _add(self, name: str, number: float) -> None:
        self.numbers[name] = self.numbers.get(name, 0) + number
