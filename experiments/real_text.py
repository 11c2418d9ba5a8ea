"""The retriever on real text: the documentation of the installed packages, tuned from random vectors.

A question is the summary of a docstring, its passage the rest; training and test share no module. No weights are
downloaded and no generator is involved, so the regimes are those that need labelled passages or questions alone. All
get the same number of optimiser steps, of 128 questions each.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import grid
import plain
from grid import Plan, Size

from fedrag.encoders.sentence import SentenceEncoder
from fedrag.evaluation import Report, evaluate_retriever
from fedrag.objectives.contrastive import Contrastive
from fedrag.objectives.distillation import Distillation
from fedrag.objectives.mining import HardNegatives
from fedrag.quickstart.documentation import Documentation, read_documentation
from fedrag.quickstart.static_encoder import static_encoder
from fedrag.quickstart.training import train
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.lexical import LexicalRetriever
from fedrag.stores.memory import MemoryStore

SETTING = "whole corpus"
COLUMNS = {name: (SETTING, name) for name in ("recall@1", "recall@10", "mrr@10")}


class LexicalJudge:
    """BM25 as a teacher: the score that it gives a passage for a question, among the best 200; 0 beyond."""

    def __init__(self, text: Documentation) -> None:
        self.bm25 = LexicalRetriever(text.documents)

    def predict(self, pairs: Sequence[tuple[str, str]], /) -> list[float]:
        """One score per pair."""
        questions = list(dict.fromkeys(question for question, _ in pairs))
        found = {
            question: {hit.document.text: hit.score for hit in hits}
            for question, hits in zip(questions, self.bm25.retrieve(questions, 200), strict=True)
        }
        return [found[question].get(passage, 0.0) for question, passage in pairs]


@lru_cache(maxsize=1)
def text_of(size: Size) -> Documentation:
    text = read_documentation({"stdlib": ("argparse", "json", "logging"), "numpy": ("numpy",)}, progress=False) if (
        size == "tiny"
    ) else read_documentation(progress=False)  # fmt: skip
    return text if size == "full" else replace(text, test=text.test[::4])


def make(seed: int, *, size: Size) -> RAGSystem:
    """An untrained retriever over all passages."""
    text = text_of(size)
    passages = {document.id: document.text for document in text.documents}
    texts = [t for example in text.train for t in (example.question, passages[example.positives[0]])]
    encoder = SentenceEncoder(static_encoder(texts, width=64 if size == "tiny" else 512, seed=seed))
    rag = RAGSystem(retriever=DenseRetriever(encoder, MemoryStore(), batch_size=128))
    rag.add(text.documents, progress=False)
    return rag


def run(rag: RAGSystem, seed: int, *, kind: str, size: Size, **settings: Any) -> RAGSystem | None:
    """Train in one of the ways of the table."""
    text = text_of(size)
    match kind:
        case "BM25":
            return RAGSystem(retriever=LexicalRetriever(text.documents))
        case "contrastive":
            train(Contrastive(rag), text.train, seed=seed, batch_size=128, **settings)
        case "hard negatives":
            first = settings.pop("first")
            steps = settings.pop("steps")
            guards = HardNegatives(ranks=(0, settings.pop("ranks")))
            train(Contrastive(rag), text.train, seed=seed, batch_size=128, steps=first, rate=settings["rate"])
            mined = Contrastive(rag, mine=guards)
            train(mined, text.train, seed=seed + 1, batch_size=128, steps=steps - first, **settings)
        case "distillation":
            temperature, k = settings.pop("teacher_temperature"), settings.pop("k")
            judge = LexicalJudge(text)
            objective = Distillation(rag, judge, k=k, train="both", teacher_temperature=temperature)
            train(objective, text.train, seed=seed, batch_size=128, **settings)
        case "sentence-transformers":
            plain.ranking(rag, text.train, seed=seed, **settings)
        case _:
            pass
    return None


def ways(steps: int) -> dict[str, dict[str, Any]]:
    """The regimes of the table."""
    rate = {"steps": steps, "rate": 0.1}
    return {
        "untrained": {"kind": "untrained"},
        "BM25": {"kind": "BM25"},
        "contrastive": {"kind": "contrastive", **rate},
        "contrastive, hard negatives": {
            "kind": "hard negatives", "first": steps * 3 // 4, "ranks": 30, "refresh": 10, "steps": steps, "rate": 0.05
        },
        "distillation of BM25": {
            "kind": "distillation", "k": 32, "teacher_temperature": 2.0, "refresh": 20, **rate
        },
        "sentence-transformers, plain": {"kind": "sentence-transformers", **rate},
    }  # fmt: skip


def measure(rag: RAGSystem, seed: int, *, size: Size) -> Mapping[str, Report]:
    questions = text_of(size).test
    return {SETTING: evaluate_retriever(rag.retriever, questions, k=10, progress=False, cluster="module")}


def plans(size: Size) -> list[Plan]:
    """One grid, all regimes."""
    steps = {"full": 200, "quick": 60, "tiny": 10}[size]
    found = ways(steps)
    return [
        Plan(
            name="real-text",
            title="Real text: tuning a retriever",
            what=(__doc__ or "").partition("\n\n")[2].strip().replace("\n", " ") + f" {steps} steps.",
            make=partial(make, size=size),
            measure=partial(measure, size=size),
            regimes={name: partial(run, size=size, **settings) for name, settings in found.items()},
            settings={name: {"size": size, **settings} for name, settings in found.items()},
            columns=COLUMNS,
            seeds=(0, 1, 2) if size == "full" else (0,),
            baseline="untrained",
            pairs=[
                ("contrastive, hard negatives", "contrastive"),
                ("contrastive", "sentence-transformers, plain"),
                ("BM25", "contrastive, hard negatives"),
            ],
        )
    ]


if __name__ == "__main__":
    sys.exit(grid.main(plans, __file__, __doc__ or ""))
