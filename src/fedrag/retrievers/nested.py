"""Retrievers made of retrievers, and how to find the one among them that has what is asked for.

    Reranked(HybridRetriever([dense, LexicalRetriever(store)]), reranker)

A retriever that asks others names them in `inside`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

from fedrag.errors import InputError
from fedrag.types import Retriever

T = TypeVar("T")


@runtime_checkable
class Nested(Retriever, Protocol):
    """A retriever that asks others."""

    @property
    def inside(self) -> tuple[Retriever, ...]:
        """The retrievers that it asks, in order."""
        ...


def every(retriever: Retriever) -> Iterator[Retriever]:
    """The retriever and all inside it, the outer ones first."""
    yield retriever
    if isinstance(retriever, Nested):
        for inner in retriever.inside:
            yield from every(inner)


def find(retriever: Retriever, kind: type[T]) -> T | None:
    """The one of this kind, wherever it is; `None` where there is none.

    Raises `InputError` for two different ones: their weights would have one name, and one of them would be forgotten.
    """
    found = {id(part): part for part in every(retriever) if isinstance(part, kind)}
    if len(found) > 1:
        raise InputError(f"the system's retriever has {len(found)} {kind.__name__}s inside: it may have one")
    return next(iter(found.values()), None)


def the(retriever: Retriever, kind: type[T]) -> T:
    """The one of this kind. Raises `InputError` where there is none, or more than one."""
    if (found := find(retriever, kind)) is None:
        raise InputError(f"this needs a {kind.__name__}, the system has a {type(retriever).__name__}")
    return found
