"""The questions that flipped: wrong before and right after, or right before and wrong after.

Right is a value of 0.5 or more in the metric chosen. The largest changes come first. A page holds as many as fit:
`shown` of each kind, and all their texts together below `_ROOM` bytes; the counts are those of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from markupsafe import escape

from fedrag.evaluation import Record
from fedrag.types import Document

RIGHT = 0.5
_ROOM = 1_200_000  # bytes of HTML for each kind, so that a phone can hold the page
_TEXT, _ID, _FEW = 600, 80, 5  # characters of a text, characters of an id, golds and passages of a question


class Passages(Protocol):
    """Where the text of a passage is to be had: a knowledge store."""

    def __contains__(self, id: object) -> bool: ...

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents of these ids, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved passage: its rank from 1, its text where that is known, whether it is gold, and whether the other
    side did not retrieve it."""

    rank: int
    id: str
    text: str | None
    gold: bool
    alone: bool


@dataclass(frozen=True, slots=True)
class Side:
    """What one system made of a question; `unseen` counts the passages that are not shown."""

    value: float
    answer: str | None
    passages: tuple[Passage, ...]
    unseen: int


@dataclass(frozen=True, slots=True)
class Flip:
    """A question that flipped; `ranks` has, for its gold passages, the id and the rank before and after."""

    number: int
    question: str
    golds: tuple[str, ...]
    ranks: tuple[tuple[str, int | None, int | None], ...]
    before: Side
    after: Side


@dataclass(frozen=True, slots=True)
class Flips:
    """The flips of one kind that the page shows, and how many there are in all."""

    kind: str
    count: int
    shown: tuple[Flip, ...]


def flips(
    before: Sequence[Record], after: Sequence[Record], metric: str, *, shown: int, store: Passages | None
) -> tuple[Flips, Flips]:
    """Return what became right and what became wrong, of records that are the same questions in the same order."""
    changes = [
        (new.values[metric] - old.values[metric], place)
        for place, (old, new) in enumerate(zip(before, after, strict=True))
        if metric in old.values
        and metric in new.values
        and (old.values[metric] >= RIGHT) != (new.values[metric] >= RIGHT)
    ]
    right = [place for change, place in sorted(changes, key=lambda pair: (-pair[0], pair[1])) if change > 0]
    wrong = [place for change, place in sorted(changes) if change < 0]

    def some(kind: str, places: list[int]) -> Flips:
        made: list[Flip] = []
        room = _ROOM
        for place in places[:shown]:
            flip = _flip(place, before[place], after[place], metric, store)
            room -= _size(flip)
            if room < 0:
                break
            made.append(flip)
        return Flips(kind, len(places), tuple(made))

    return some("became right", right), some("became wrong", wrong)


def _flip(place: int, old: Record, new: Record, metric: str, store: Passages | None) -> Flip:
    example = old.example
    golds = [*(example.answers or ())]
    named = [clip(gold) or "(no answer)" for gold in golds[:_FEW]]
    if len(golds) > _FEW:
        named.append(f"{len(golds) - _FEW} more")
    ranks = tuple((clip(id, _ID), _rank(old, id), _rank(new, id)) for id in dict.fromkeys(example.positives))
    one, two = _side(old, new, metric, store), _side(new, old, metric, store)
    return Flip(place + 1, clip(example.question), tuple(named), ranks[:_FEW], one, two)


def _side(record: Record, other: Record, metric: str, store: Passages | None) -> Side:
    gold, theirs = set(record.example.positives), set(other.hits)
    ids = record.hits[:_FEW]
    texts: dict[str, str] = {}
    if store is not None:
        known = list(dict.fromkeys(id for id in ids if id in store))
        texts = {document.id: clip(document.text) for document in store.get(known)}
    passages = tuple(
        Passage(rank, id, texts.get(id), id in gold, id not in theirs) for rank, id in enumerate(ids, start=1)
    )
    answer = None if record.answer is None else clip(record.answer)
    passages = tuple(replace(passage, id=clip(passage.id, _ID)) for passage in passages)
    return Side(record.values[metric], answer, passages, len(record.hits) - len(ids))


def _rank(record: Record, id: str) -> int | None:
    return record.hits.index(id) + 1 if id in record.hits else None


def clip(text: str, most: int = _TEXT) -> str:
    """Cut a text that is too long for the page, and say by how much.

    >>> clip("abcdef", 4)
    'abcd … (2 more characters)'
    """
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def _size(flip: Flip) -> int:
    """Bytes of HTML, about."""
    texts = [flip.question, *flip.golds, *(id for id, _, _ in flip.ranks)]
    for side in (flip.before, flip.after):
        texts += [side.answer or "", *(text for p in side.passages for text in (p.id, p.text or ""))]
    return 1000 + sum(150 + len(str(escape(text)).encode("utf-8", "replace")) for text in texts)
