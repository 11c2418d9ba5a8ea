"""The table on the invented world: what each way of training is worth, alone and together, end to end.

Every regime starts from the same untrained retriever and the same shipped base model, and gets the same number of
optimiser steps in all, of 32 questions each; a regime of two halves shares them out. Questions are about entities that
training never named. Some regimes begin with RALT, because the base model has never seen a question and can neither use
a passage nor tell which one helps.

What a step is differs, and is told: RALT's practice contexts use the labels (a gold passage in most of them, half of
them by the rule of "gold among four"), and so do contrastive tuning and what is joined with RALT; "RALT, no labels" and
the marginal objectives see retrieved passages alone. A joint step updates both parts, a step in turns or of one half
one. LSR's teacher judges 16 passages, the marginal objectives read 8 with gradient, EMDR2 4 in one prompt. All training
retrieves from the whole store, the passages about held-out entities among them, as text without labels.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any

import grid
import plain
from grid import Plan, Size

from fedrag.evaluation import Report
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.contrastive import Contrastive
from fedrag.objectives.emdr2 import EMDR2
from fedrag.objectives.joint import Joint
from fedrag.objectives.lsr import LSR
from fedrag.objectives.marginal import RAGSequence, RAGToken
from fedrag.objectives.objective import Objective
from fedrag.objectives.ralt import RALT
from fedrag.quickstart import loop
from fedrag.quickstart.training import train
from fedrag.quickstart.world import World, make_world
from fedrag.rag import RAGSystem
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.types import Document, Example

SETTINGS = (loop.END_TO_END, loop.ENSEMBLE, loop.STUFFED, loop.AMONG_FOUR, loop.NONE)
STEPS = {"full": 200, "quick": 60, "tiny": 20}
UNSEEN = "end to end, answers never seen in training"
COLUMNS = {
    "end to end": (loop.END_TO_END, "exact_match"),
    "ensemble of four": (loop.ENSEMBLE, "exact_match"),
    "four stuffed": (loop.STUFFED, "exact_match"),
    "gold among four": (loop.AMONG_FOUR, "exact_match"),
    "recall@1": (loop.END_TO_END, "recall@1"),
    "recall@10": (loop.END_TO_END, "recall@10"),
    "unseen answers": (UNSEEN, "exact_match"),
    "no passage": (loop.NONE, "exact_match"),
}


@dataclass(frozen=True)
class Stage:
    """A part of a regime: so many steps of an objective, with learning rates by part and a refresh of candidates."""

    kind: str
    steps: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    refresh: int = 10
    options: Mapping[str, Any] = field(default_factory=dict)


class Gold:
    """Contexts of the gold passage alone."""

    def __init__(self, world: World) -> None:
        self.passages = {document.id: document for document in world.documents}

    def __call__(self, example: Example, retrieved: Sequence[Document], dice: random.Random, /) -> list[Document]:
        """The first positive."""
        return [self.passages[example.positives[0]]]


def practice(rag: RAGSystem, world: World) -> RALT:
    """RALT as the quickstart does it."""
    return RALT(rag, k=8, contexts=loop.Practice(rag, world))


def objective(stage: Stage, rag: RAGSystem, world: World) -> Objective:
    """The objective of a stage."""
    options = dict(stage.options)
    match stage.kind:
        case "ralt":
            return practice(rag, world)
        case "ralt without labels":
            return RALT(rag, k=8, contexts=Mixture(rag.dense.store, documents=(1, 4), gold=0.0, keep=True))
        case "ralt on strangers":
            return loop.OnStrangers(rag, k=8, contexts=Mixture(rag.dense.store, documents=(1, 4), gold=0.0))
        case "closed book":
            return RALT(rag, k=0)
        case "lsr":
            return LSR(rag, train="both", **options)
        case "contrastive":
            return Contrastive(rag, **options)
        case "rag-sequence":
            return RAGSequence(rag, train="both", chunk=None, **options)
        case "rag-token":
            return RAGToken(rag, train="both", chunk=None, **options)
        case "emdr2":
            return EMDR2(rag, train="both", **options)
        case "joint":
            turns = options.pop("turns", None)
            return Joint(LSR(rag, train="both", **options), practice(rag, world), turns=turns)
        case _:
            raise ValueError(f"no stage is called {stage.kind!r}")


def run(rag: RAGSystem, seed: int, *, stages: Sequence[Stage], world: World, examples: Sequence[Example]) -> RAGSystem:
    """Train stage by stage; a stage without steps changes a part of what is asked."""
    for number, stage in enumerate(stages):
        if stage.kind == "ask the frozen reader":
            rag = loop.with_parts(rag, generator=loop.make_system(world, seed).generator)
        elif stage.kind == "ask BM25":
            rag = loop.with_parts(rag, retriever=LexicalRetriever(world.documents))
        elif stage.kind == "trl on gold passages":
            plain.sft(rag, examples, Gold(world), steps=stage.steps, rate=stage.rates["generator"], seed=seed)
        else:
            rate = max(stage.rates.values())
            train(
                objective(stage, rag, world),
                examples,
                steps=stage.steps,
                rate=rate,
                rates=stage.rates,
                seed=seed + number,
                refresh=stage.refresh,
            )
    return rag


def ways(steps: int) -> dict[str, list[Stage]]:
    """The regimes of the table, each with `steps` optimiser steps in all."""
    read, find = {"generator": 5e-3}, {"retriever": 0.08}
    both = read | find
    first = round(steps * 0.6)
    rest, warm = steps - first, round(steps * 0.3)
    k = {"k": 16}
    stuffed = {"k": 4}
    ralt = Stage("ralt", first, read)
    cold = {"rates": both, "options": {"k": 8}}
    warmed = {"rates": find | {"generator": 2e-3}, "options": {"k": 8}}
    return {
        "frozen": [],
        "contrastive": [Stage("contrastive", steps, {"retriever": 0.08})],
        "contrastive, then RALT": [Stage("contrastive", rest, {"retriever": 0.08}), ralt],
        "RALT": [Stage("ralt", steps, read)],
        "RALT, no labels": [Stage("ralt without labels", steps, read)],
        "LSR, taught by RALT's reader": [ralt, Stage("lsr", rest, find, options=k), Stage("ask the frozen reader")],
        "RALT, then LSR": [ralt, Stage("lsr", rest, find, options=k)],
        "alternating": [Stage("joint", steps, both, options=k | {"turns": 10})],
        "Joint(LSR, RALT)": [Stage("joint", steps, both, options=k)],
        "RAG-Sequence": [Stage("rag-sequence", steps, **cold)],
        "RAG-Token": [Stage("rag-token", steps, **cold)],
        "EMDR2": [Stage("emdr2", steps, both, options=stuffed)],
        "RALT, then alternating": [
            Stage("ralt", warm, read), Stage("joint", steps - warm, both, options=k | {"turns": 10})
        ],
        "RALT, then RAG-Sequence": [ralt, Stage("rag-sequence", rest, **warmed)],
        "RALT, then RAG-Token": [ralt, Stage("rag-token", rest, **warmed)],
        "RALT, then EMDR2": [ralt, Stage("emdr2", rest, find | {"generator": 2e-3}, options=stuffed)],
        "control: closed book": [Stage("closed book", steps, read)],
        "control: RALT on strangers": [Stage("ralt on strangers", steps, read)],
        "control: TRL SFT on gold": [Stage("trl on gold passages", steps, read)],
        "control: BM25, RALT's reader": [Stage("ralt", steps, read), Stage("ask BM25")],
    }  # fmt: skip


@lru_cache(maxsize=4)
def world_of(seed: int, size: Size) -> World:
    return make_world(seed, train=20, dev=2, test=6) if size == "tiny" else make_world(seed)


def measure(rag: RAGSystem, seed: int, *, size: Size) -> dict[str, Report]:
    """Ask the held-out questions in every setting; the answers that training never gave once more by themselves."""
    world = world_of(seed, size)
    questions = world.test[:: 5 if size == "quick" else 1]
    reports = loop.measure(rag, world, questions, settings=SETTINGS)
    reports[UNSEEN] = reports[loop.END_TO_END].subset(lambda record: bool(record.example.metadata["held_out"]))
    return reports


def train_way(rag: RAGSystem, seed: int, *, stages: Sequence[Stage], size: Size) -> RAGSystem:
    world = world_of(seed, size)
    return run(rag, seed, stages=stages, world=world, examples=world.train)


def plans(size: Size) -> list[Plan]:
    """One grid, all regimes."""
    steps = STEPS[size]
    found = ways(steps)
    single = ("RALT", "LSR, taught by RALT's reader", "contrastive")
    joint = [name for name in found if name not in ("frozen", *single) and not name.startswith("control")]
    return [
        Plan(
            name="world",
            title="The invented world: every method, alone and together",
            what=__doc__.partition("\n\n")[2].strip().replace("\n", " ") + f" {steps} steps. Exact match of greedy "
            "generation: *end to end* reads the best passage that the regime's own retriever finds among 2,448; *gold "
            "among four* the gold passage and three hard distractors, where guessing is right for 25 %.",
            make=lambda seed: loop.make_system(world_of(seed, size), seed),
            measure=partial(measure, size=size),
            regimes={name: partial(train_way, stages=stages, size=size) for name, stages in found.items()},
            settings={name: {"size": size, "stages": [asdict(s) for s in stages]} for name, stages in found.items()},
            columns=COLUMNS,
            compared=("end to end", "gold among four", "recall@1"),
            seeds=(0, 1, 2) if size == "full" else (0,),
            pairs=[(after, before) for after in joint for before in single],
        )
    ]


if __name__ == "__main__":
    sys.exit(grid.main(plans, __file__, __doc__ or ""))
