"""The invented world where training saw less: another domain, or a tenth of the entities.

Cross-domain: trained on two of the three domains and asked about the third, each in turn; a domain has relations,
questions and passages of its own. Low resource: trained on a tenth of the training entities, 120 questions, and asked
about all domains. The store holds every passage, those of the held-out domain too, and training retrieves from it: they
are met as text, never with a question or an answer.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial

import grid
import world
from grid import Plan, Size
from world import Stage

from fedrag.evaluation import Report
from fedrag.quickstart import loop
from fedrag.quickstart.world import World
from fedrag.rag import RAGSystem
from fedrag.types import Example

REGIMES = ("frozen", "RALT", "RALT, then LSR", "contrastive, then RALT")
COLUMNS = {
    "end to end": (loop.END_TO_END, "exact_match"),
    "gold among four": (loop.AMONG_FOUR, "exact_match"),
    "recall@1": (loop.END_TO_END, "recall@1"),
}
FEW = "a tenth"


@lru_cache(maxsize=8)
def part_of(seed: int, size: Size, part: str) -> tuple[World, Sequence[Example]]:
    """The world with the training questions of a part in the first place, and what that part is asked."""
    whole = world.world_of(seed, size)
    if part == FEW:
        entities = sorted({example.metadata["entity"] for example in whole.train})
        few = set(random.Random(f"few {seed}").sample(entities, max(3, len(entities) // 10)))
        kept, asked = narrowed(whole, lambda example: example.metadata["entity"] in few), whole.test
    else:
        kept = narrowed(whole, lambda example: example.metadata["domain"] != part)
        asked = [example for example in whole.test if example.metadata["domain"] == part]
    return kept, asked[:: 5 if size == "quick" else 1]


def narrowed(whole: World, keep: Callable[[Example], bool]) -> World:
    """The world with fewer training questions; their passages come first, as `loop.Practice` expects."""
    train = tuple(filter(keep, whole.train))
    known = {example.positives[0] for example in train}
    documents = sorted(whole.documents, key=lambda document: document.id not in known)  # stable
    return replace(whole, documents=tuple(documents), train=train)


def run(rag: RAGSystem, seed: int, *, stages: Sequence[Stage], size: Size, part: str) -> RAGSystem:
    kept, _ = part_of(seed, size, part)
    return world.run(rag, seed, stages=stages, world=kept, examples=kept.train)


def measure(rag: RAGSystem, seed: int, *, size: Size, part: str) -> dict[str, Report]:
    kept, asked = part_of(seed, size, part)
    return loop.measure(rag, kept, asked, settings=(loop.END_TO_END, loop.AMONG_FOUR))


def plans(size: Size) -> list[Plan]:
    """A grid for each domain and one for the tenth, on one page: comparisons are corrected over all of them."""
    steps = world.STEPS[size]
    found = {name: stages for name, stages in world.ways(steps).items() if name in REGIMES}
    return [
        Plan(
            name=f"domains-{part.replace(' ', '-')}",
            page="domains",
            part=part,
            title="The invented world: other domains, and a tenth of the data",
            what=(__doc__ or "").partition("\n\n")[2].strip().replace("\n", " ") + f" {steps} steps.",
            make=partial(make, size=size, part=part),
            measure=partial(measure, size=size, part=part),
            regimes={name: partial(run, stages=stages, size=size, part=part) for name, stages in found.items()},
            settings={
                name: {"size": size, "part": part, "stages": [asdict(s) for s in stages]}
                for name, stages in found.items()
            },
            columns=COLUMNS,
            compared=("end to end", "gold among four"),
            seeds=(0, 1, 2) if size == "full" else (0,),
        )
        for part in ("harbour", "clinic", "museum", FEW)
    ]


def make(seed: int, *, size: Size, part: str) -> RAGSystem:
    return loop.make_system(part_of(seed, size, part)[0], seed)


if __name__ == "__main__":
    sys.exit(grid.main(plans, __file__, __doc__ or ""))
