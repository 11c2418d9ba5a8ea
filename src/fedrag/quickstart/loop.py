"""Act B of the quickstart: the whole loop, retriever and generator, on the invented world.

Every trained regime starts from the same untrained retriever and the same shipped base, and gets the same number of
steps in all: "RALT" alone as many as "RALT, then LSR" together. Exact match comes from real greedy generation over
held-out facts, in five settings:

- *end to end*: the reader gets the best passage that the regime's own retriever finds in the whole store;
- *gold among four*: the gold passage and three hard distractors, see `fedrag.quickstart.world.gold_context`;
- *gold passage* and *random passage*: one passage, the right one or any other;
- *no context*: the question alone.

The base has never seen a question, so it cannot teach a retriever (a control lets it, and shows that). LSR is therefore
taught by the reader that RALT made; "LSR, frozen reader" has the retriever that it taught, and the base as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.evaluation import Report, evaluate
from fedrag.generators.causal import CausalLM
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.lsr import LSR
from fedrag.objectives.ralt import RALT
from fedrag.prompts import Prompt
from fedrag.quickstart.training import train
from fedrag.quickstart.world import BASE, TEMPLATE, World, gold_context, world_retriever
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document, Example, Generator, Hit, Retriever, Where

END_TO_END, AMONG_FOUR, GOLD, RANDOM, NONE = (
    "end to end",
    "gold among four",
    "gold passage",
    "random passage",
    "no context",
)
SETTINGS = (END_TO_END, AMONG_FOUR, GOLD, RANDOM, NONE)
ENSEMBLE = "end to end, ensemble of four"
"""One more setting: the four best passages, each in a prompt of its own, their next-token distributions mixed."""
STUFFED = "end to end, four in one prompt"
"""And one more: the four best passages together."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Training steps of the two halves; a regime with one half gets the sum."""

    ralt: int = 300
    lsr: int = 200


@dataclass(frozen=True, slots=True)
class Contexts:
    """A retriever that knows its hits beforehand, by question: the oracle and random controls."""

    documents: Mapping[str, Sequence[Document]]

    def retrieve(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return the first k documents that belong to each query."""
        return [_ranked(self.documents[query][:k]) for query in queries]


class Practice:
    """One or four passages to train on: half of the time a hard context with the gold one in it, else of those found.

    The hard contexts follow the rule of the setting *gold among four*, with facts of training questions alone. Where
    the gold passage is not among those found, it takes another one's place seven times in ten. Drawn at each step.
    """

    def __init__(self, rag: RAGSystem, world: World) -> None:
        self.found = Mixture(rag.dense.store, documents=(1, 4), gold=0.7, keep=True)
        self.known = replace(world, documents=world.documents[: len(world.train)], dev=(), test=())

    def __call__(self, example: Example, retrieved: Sequence[Document], dice: random.Random, /) -> list[Document]:
        """Draw the passages of one prompt."""
        if dice.random() < 0.5:
            return gold_context(self.known, example, seed=dice.randrange(10**6))
        return self.found(example, retrieved, dice)


class OnStrangers(RALT):
    """A control: RALT on what is retrieved for questions about other entities: the right kind of text, and no help."""

    def find(self, examples: Sequence[Example]) -> list[list[Document]]:
        """The documents of the examples half a batch away, which are about other entities."""
        away = len(examples) // 2
        found = super().find([*examples[away:], *examples[:away]])
        return [
            [document for document in documents if document.metadata["entity"] != example.metadata["entity"]]
            for example, documents in zip(examples, found, strict=True)
        ]


def make_system(world: World, seed: int) -> RAGSystem:
    """The untrained system: a random static encoder, the shipped base with new adapters, every passage of the world."""
    torch.manual_seed(seed)  # of the adapters
    retriever = DenseRetriever(SentenceEncoder(world_retriever(seed)), MemoryStore(), batch_size=256)
    generator = CausalLM(BASE, lora=16, max_new_tokens=3)
    prompt = Prompt(template=TEMPLATE, document_template="{text}")
    rag = RAGSystem(retriever=retriever, generator=generator, top_k=1, prompt=prompt)
    rag.add(world.documents, progress=False)
    return rag


def train_ralt(rag: RAGSystem, world: World, steps: int, seed: int) -> None:
    """RALT on the best eight passages, in contexts as `Practice` draws them."""
    train(RALT(rag, k=8, contexts=Practice(rag, world)), world.train, steps=steps, seed=seed, rate=5e-3)


def train_lsr(rag: RAGSystem, world: World, steps: int, seed: int) -> None:
    """LSR of both towers on the best sixteen passages, retrieved anew every 10 steps."""
    train(LSR(rag, k=16, train="both"), world.train, steps=steps, seed=seed, rate=0.08, refresh=10)


def run_regimes(
    world: World,
    seed: int,
    steps: Steps,
    questions: Sequence[Example],
    announce: Callable[[str], None],
    *,
    controls: bool,
) -> tuple[dict[str, dict[str, Report]], RAGSystem]:
    """Train and measure every regime of the table: reports by regime and setting, and the system tuned by both."""
    reports: dict[str, dict[str, Report]] = {}

    def report(name: str, rag: RAGSystem) -> None:
        announce(name)
        reports[name] = measure(rag, world, questions)

    untrained = make_system(world, seed)
    report("frozen", untrained)
    tuned = make_system(world, seed)
    train_ralt(tuned, world, steps.ralt, seed)
    further = make_system(world, seed)
    copy_generator(tuned.generator, further.generator)
    train_ralt(further, world, steps.lsr, seed + 1)
    report("RALT", further)
    train_lsr(tuned, world, steps.lsr, seed)
    report("LSR, frozen reader", with_parts(tuned, generator=untrained.generator))
    report("RALT, then LSR", tuned)
    lexical = with_parts(further, retriever=LexicalRetriever(world.documents))
    reports["RALT, with BM25"] = {END_TO_END: measure(lexical, world, questions)[END_TO_END]}
    if controls:
        total = steps.ralt + steps.lsr
        taught_by_base = make_system(world, seed)
        train_lsr(taught_by_base, world, total, seed)
        report("control: LSR taught by the base", taught_by_base)
        strange = make_system(world, seed)
        train(
            OnStrangers(strange, k=8, contexts=Mixture(strange.dense.store, documents=(1, 4), gold=0.0)),
            world.train,
            steps=total,
            seed=seed,
            rate=5e-3,
        )
        report("control: RALT on others' passages", strange)
        closed = make_system(world, seed)
        train(RALT(closed, k=0), world.train, steps=total, seed=seed, rate=5e-3)
        report("control: answers without passages", closed)
    return reports, tuned


def measure(
    rag: RAGSystem, world: World, questions: Sequence[Example], *, settings: Sequence[str] = SETTINGS
) -> dict[str, Report]:
    """Ask the questions in every one of the settings."""
    passages = {document.id: document for document in world.documents}
    dice = random.Random(0)
    others = {q.question: [dice.choice([d for d in world.documents if d.id not in q.positives])] for q in questions}
    contexts: dict[str, tuple[Retriever, int]] = {
        END_TO_END: (rag.retriever, rag.top_k),
        ENSEMBLE: (rag.retriever, 4),
        STUFFED: (rag.retriever, 4),
        AMONG_FOUR: (Contexts({q.question: gold_context(world, q) for q in questions}), 4),
        GOLD: (Contexts({q.question: [passages[q.positives[0]]] for q in questions}), 1),
        RANDOM: (Contexts(others), 1),
        NONE: (rag.retriever, 0),
    }
    reports: dict[str, Report] = {}
    for setting in settings:
        retriever, k = contexts[setting]
        asked = with_parts(rag, retriever=retriever, top_k=k, reader="ensemble" if setting == ENSEMBLE else "stuff")
        depth = 10 if setting == END_TO_END else None
        reports[setting] = evaluate(asked, questions, depth=depth, batch_size=128, progress=False, cluster="entity")
    return reports


def _ranked(documents: Sequence[Document]) -> list[Hit]:
    return [Hit(document, 1 / rank) for rank, document in enumerate(documents, start=1)]


def with_parts(
    rag: RAGSystem,
    *,
    retriever: Retriever | None = None,
    generator: Generator | None = None,
    top_k: int | None = None,
    reader: Literal["stuff", "ensemble"] = "stuff",
) -> RAGSystem:
    """The system with some parts replaced."""
    return RAGSystem(
        retriever=retriever or rag.retriever,
        generator=generator or rag.generator,
        top_k=rag.top_k if top_k is None else top_k,
        prompt=rag.prompt,
        reader=reader,
        temperature=rag.temperature if retriever in (None, rag.retriever) else None,
    )


def copy_generator(source: Any, target: Any) -> None:
    """Give a generator the weights of another one like it."""
    target.model.load_state_dict(source.model.state_dict())
