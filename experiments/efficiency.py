"""Against plain scripts on the same rows: RALT and TRL's SFT, Contrastive and sentence-transformers' own trainer.

The readers train on one fixed context of four passages per question, the gold one and three hard distractors, and are
asked with such contexts; the retrievers on labelled pairs of the documentation. Steps, batches, rates, schedules and
seeds are the same. The two sides of a pair run one after the other, seed by seed, each in a process of its own on one
thread; ratios are taken within a seed, of CPU seconds of training, in which the libraries' preparation of rows counts.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import grid
import plain
import real_text
import world
from grid import Plan, Size

from fedrag.ablations import Ablation
from fedrag.ablations.result import markdown_table
from fedrag.evaluation import Report
from fedrag.objectives.ralt import RALT
from fedrag.quickstart import loop
from fedrag.quickstart.training import train
from fedrag.quickstart.world import World, gold_context
from fedrag.rag import RAGSystem
from fedrag.types import Document, Example


class Fixed:
    """The same hard context for a question at every step, of passages about training questions alone."""

    def __init__(self, whole: World) -> None:
        self.known = replace(whole, documents=whole.documents[: len(whole.train)], dev=(), test=())

    def __call__(self, example: Example, retrieved: Sequence[Document], dice: random.Random, /) -> list[Document]:
        """The gold passage and three distractors."""
        return gold_context(self.known, example)


def read(rag: RAGSystem, seed: int, *, side: str, size: Size, **training: Any) -> None:
    whole = world.world_of(seed, size)
    if side == "RALT":
        train(RALT(rag, k=0, contexts=Fixed(whole)), whole.train, seed=seed, **training)
    elif side == "TRL SFT":
        plain.sft(rag, whole.train, Fixed(whole), seed=seed, **training)


def among_four(rag: RAGSystem, seed: int, *, size: Size) -> dict[str, Report]:
    whole = world.world_of(seed, size)
    return loop.measure(rag, whole, whole.test, settings=(loop.AMONG_FOUR,))


def ratios(grid_: Ablation, ours: str, theirs: str) -> str:
    """Theirs over ours, seed by seed."""
    rows = [("theirs / ours", *(f"seed {seed}" for seed in grid_.cells[ours]), "median")]
    for what, name in (("CPU seconds", "cpu_seconds"), ("wall seconds", "wall_seconds"), ("peak memory", "peak_gib")):
        found = [
            getattr(grid_.cells[theirs][seed].cost, name) / getattr(cell.cost, name)
            for seed, cell in grid_.cells[ours].items()
        ]
        rows.append((what, *(f"{ratio:.2f}" for ratio in found), f"{median(found):.2f}"))
    return f"## {theirs} over {ours}\n\n{markdown_table(rows)}"


def plans(size: Size) -> list[Plan]:
    """One grid for readers, one for retrievers."""
    what = (__doc__ or "").partition("\n\n")[2].strip().replace("\n", " ")
    seeds = (0, 1, 2) if size == "full" else (0,)
    reading = {"steps": {"full": 150, "quick": 60, "tiny": 4}[size], "rate": 5e-3}
    finding = {name: dict(real_text.ways({"full": 200, "quick": 60, "tiny": 4}[size])[name]) for name in (
        "untrained", "contrastive", "sentence-transformers, plain")}  # fmt: skip
    readers = ("frozen", "RALT", "TRL SFT")
    return [
        Plan(
            name="efficiency-readers",
            title="RALT against a plain TRL script",
            what=f"{what} {reading['steps']} steps.",
            make=lambda seed: loop.make_system(world.world_of(seed, size), seed),
            measure=partial(among_four, size=size),
            regimes={side: partial(read, side=side, size=size, **reading) for side in readers},
            settings={side: {"size": size, **reading} for side in readers},
            columns={"gold among four": (loop.AMONG_FOUR, "exact_match")},
            seeds=seeds,
            pairs=[("RALT", "TRL SFT")],
            notes=partial(ratios, ours="RALT", theirs="TRL SFT"),
        ),
        Plan(
            name="efficiency-retrievers",
            title="Contrastive against a plain sentence-transformers script",
            what=f"{what} {finding['contrastive']['steps']} steps.",
            make=partial(real_text.make, size=size),
            measure=partial(real_text.measure, size=size),
            regimes={name: partial(real_text.run, size=size, **settings) for name, settings in finding.items()},
            settings={name: {"size": size, **settings} for name, settings in finding.items()},
            columns=real_text.COLUMNS,
            seeds=seeds,
            baseline="untrained",
            pairs=[("contrastive", "sentence-transformers, plain")],
            notes=partial(ratios, ours="contrastive", theirs="sentence-transformers, plain"),
        ),
    ]


if __name__ == "__main__":
    sys.exit(grid.main(plans, __file__, __doc__ or "", jobs=1))
