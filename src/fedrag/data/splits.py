"""Splitting examples so that what is tested was not trained on, and telling where it was.

>>> examples = [Example(f"Question {i}?", ["yes"], metadata={"page": i // 3}) for i in range(60)]
>>> parts = split(examples, {"train": 0.8, "test": 0.2}, by="page")
>>> {name: len(part) for name, part in parts.items()}
{'train': 48, 'test': 12}
>>> print(overlap(parts["train"], parts["test"]))
of 12 test questions, 0 are asked in training too and 0 share a positive document with training
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fedrag.data.fields import required
from fedrag.errors import ConfigError, DataError
from fedrag.types import Example

FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "dev": 0.1, "test": 0.1})


def split(
    examples: Sequence[Example],
    fractions: Mapping[str, float] = FRACTIONS,
    *,
    by: str | Callable[[Example], Hashable] | None = None,
    seed: int = 0,
) -> dict[str, list[Example]]:
    """Divide examples at random into named parts of about these fractions; each part keeps the examples' order.

    Examples of one group stay together, and so do equal questions (case, spaces and closing marks aside). A part is
    larger than its share by less than the largest group. The same examples, in any order, and the same seed give the
    same parts.

    Args:
        examples: what to divide.
        fractions: part names and their shares, which add up to 1.
        by: the group of an example: a metadata key, or a function of the example.
        seed: another seed, another division.

    Raises:
        ConfigError: if the fractions are not positive or do not add up to 1.
        DataError: if an example lacks the metadata key, or there are too few groups to fill every part.
    """
    if not fractions or any(not share > 0 for share in fractions.values()):
        raise ConfigError(f"fractions are positive shares such as {dict(FRACTIONS)}, got {dict(fractions)}")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ConfigError(f"fractions add up to 1, got {dict(fractions)}, which adds up to {sum(fractions.values()):g}")
    groups = _groups(examples, by)
    groups.sort(key=lambda group: _draw(seed, min(normalize(examples[i].question) for i in group)))
    room = {name: share * len(examples) for name, share in fractions.items()}
    place: dict[int, str] = {}
    for group in groups:
        name = max(room, key=room.__getitem__)
        room[name] -= len(group)
        place.update(dict.fromkeys(group, name))
    if empty := [name for name in fractions if name not in place.values()]:
        raise DataError(
            f"{len(examples)} examples in {len(groups)} groups leave the part {empty[0]!r} empty; use more examples, "
            "smaller groups or a larger share"
        )
    return {name: [example for i, example in enumerate(examples) if place[i] == name] for name in fractions}


@dataclass(frozen=True, slots=True)
class Overlap:
    """Positions in the test examples of those that training has seen; true when there are any."""

    questions: tuple[int, ...]
    positives: tuple[int, ...]
    total: int

    def __bool__(self) -> bool:
        return bool(self.questions or self.positives)

    def __str__(self) -> str:
        return (
            f"of {self.total} test questions, {len(self.questions)} are asked in training too and "
            f"{len(self.positives)} share a positive document with training"
        )


def overlap(train: Sequence[Example], test: Sequence[Example]) -> Overlap:
    """Find the test examples whose question (normalized) or whose positive document is in the training examples.

    A shared document is not a mistake by itself: closed collections are often split by question. It says that the
    test measures new questions, not new documents.
    """
    questions = {normalize(example.question) for example in train}
    positives = {id for example in train for id in example.positives}
    return Overlap(
        tuple(i for i, example in enumerate(test) if normalize(example.question) in questions),
        tuple(i for i, example in enumerate(test) if not positives.isdisjoint(example.positives)),
        len(test),
    )


def normalize(question: str) -> str:
    """The question without case, repeated spaces and closing marks, in Unicode's compatible form."""
    folded = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return folded.rstrip(" ?.!") or folded


def _groups(examples: Sequence[Example], by: str | Callable[[Example], Hashable] | None) -> list[list[int]]:
    """Positions of examples that must stay together: linked by their group or by their question, in turn."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[Hashable, int] = {}
    for i, example in enumerate(examples):
        keys: list[Hashable] = [("question", normalize(example.question))]
        if by is not None:
            keys.append(("group", _group(example, by, i)))
        for key in keys:
            parent[root(i)] = root(first.setdefault(key, i))
    members: dict[int, list[int]] = {}
    for i in range(len(examples)):
        members.setdefault(root(i), []).append(i)
    return list(members.values())


def _group(example: Example, by: str | Callable[[Example], Hashable], place: int) -> Hashable:
    group = by(example) if callable(by) else required(example.metadata, f"metadata of examples[{place}]", by)
    try:
        hash(group)
    except TypeError:
        raise DataError(
            f"the group of examples[{place}] is a {type(group).__name__}; wanted a string or a number"
        ) from None
    return group


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
