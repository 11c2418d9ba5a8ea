"""What is wrong with a recipe's data and system, found without training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from fedrag.cli.recipe import Recipe, Stage
from fedrag.data import overlap
from fedrag.errors import FedRAGError
from fedrag.generators.causal import CausalLM
from fedrag.objectives.objective import Objective
from fedrag.rag import RAGSystem
from fedrag.reading import fitting
from fedrag.training.budget import check_prompts
from fedrag.types import Example

MOST_PASSAGES = 2_000
"""Passages that are looked at, for those longer than the encoder reads."""
MOST_QUESTIONS = 64
"""Questions whose prompts are made, for those that have no room."""
_LABELLED = ("contrastive", "ranking")


def problems_of(recipe: Recipe, rag: RAGSystem, objectives: Sequence[Objective], train: Sequence[Example]) -> list[str]:
    """What would end the run, or train on nothing."""
    found: list[str] = []
    for number, (stage, objective) in enumerate(zip(recipe.stages, objectives, strict=True), start=1):
        place = f"stage {number} ({stage.objective})"
        try:
            check_prompts(objective, train)
        except FedRAGError as error:
            found.append(f"{place}: {error}")
        if _needs_labels(stage):
            found += [f"{place}: {problem}" for problem in _unlabelled(rag, train)]
    return found


def notes_of(rag: RAGSystem, train: Sequence[Example], dev: Sequence[Example]) -> list[str]:
    """What a person should know: what is cut, and what the evaluation will flatter."""
    notes = [*_cut_passages(rag), *_cut_prompts(rag, train)]
    shared = overlap(train, dev)
    if shared.questions:
        notes.append(f"{len(shared.questions)} of the {len(dev)} eval questions are in train too: metrics will flatter")
    if shared.positives:
        notes.append(f"{len(shared.positives)} of the {len(dev)} eval questions share a positive with train")
    if repeated := len(train) - len({example.question for example in train}):
        notes.append(f"{repeated} of the {len(train)} train questions are there more than once")
    return notes


def _needs_labels(stage: Stage) -> bool:
    return any(part.objective in _LABELLED for part in (stage, *stage.parts))


def _unlabelled(rag: RAGSystem, train: Sequence[Example]) -> list[str]:
    found: list[str] = []
    if bare := sum(not example.positives for example in train):
        found.append(
            f"{bare} of {len(train)} examples have no positives, which it needs: add ids of passages, leave these "
            "examples out, or take lsr, which needs none"
        )
    named = {id for example in train for id in (*example.positives, *example.negatives)}
    if named and (gone := named - _stored(rag, named)):
        found.append(
            f"{len(gone)} of {len(named)} documents that examples name are not in the store, {min(gone)!r} for one: "
            "index them, or correct the ids"
        )
    return found


def _stored(rag: RAGSystem, named: set[str]) -> set[str]:
    return {document.id for document in rag.dense.store.documents() if document.id in named}


def _cut_passages(rag: RAGSystem) -> list[str]:
    encoder = rag.dense.encoder
    texts = [document.text for document in islice(rag.dense.store.documents(), MOST_PASSAGES)]
    if not (long := encoder.too_long(texts)):
        return []
    return [
        f"{long} of the {'first ' if len(texts) == MOST_PASSAGES else ''}{len(texts)} passages are longer than the "
        f"{encoder.max_length} tokens that the encoder reads: index with fewer --chunk-tokens"
    ]


def _cut_prompts(rag: RAGSystem, train: Sequence[Example]) -> list[str]:
    if not isinstance(rag.generator, CausalLM) or not rag.top_k:
        return []
    asked = train[:MOST_QUESTIONS]
    rows = rag.retriever.retrieve([example.question for example in asked], rag.top_k)
    cut = 0
    for example, hits in zip(asked, rows, strict=True):
        documents = [hit.document for hit in hits]
        answer = len(rag.generator.target_ids(example.answers[0])) if example.answers else 0
        try:
            read = fitting(rag.prompt, rag.generator, example.question, documents, answer)
        except FedRAGError:
            continue  # told as a problem of the stage
        cut += [document.text for document in read] != [document.text for document in documents]
    if not cut:
        return []
    return [
        f"{cut} of the {'first ' if len(asked) < len(train) else ''}{len(asked)} prompts have no room for all "
        f"{rag.top_k} passages, which are shortened to {rag.generator.max_length} tokens in all: a smaller top_k, or "
        "smaller passages, lose less"
    ]
