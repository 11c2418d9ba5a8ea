"""What a recipe will cost: a few real steps of every stage, timed and extrapolated; nothing is kept of them."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from fedrag.cli.building import trainer, twin
from fedrag.cli.recipe import Recipe, Stage
from fedrag.cli.settings import tried
from fedrag.objectives.objective import Objective
from fedrag.rag import RAGSystem
from fedrag.stores.memory import MemoryStore
from fedrag.training.trainer import RAGTrainer
from fedrag.types import Example

_STEPS = 3  # timed ones; the first warms up and does not count
_ASKED = 4  # questions timed for evaluating
_SHOWN = 64  # passages in the store of the timed steps, at least, and questions that they are retrieved for


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a stage: optimiser steps, seconds of one, and of the whole stage with retrieving and embedding anew."""

    objective: str
    steps: int
    seconds_per_step: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a run. `memory` is the largest use that was seen in the timed steps, in bytes; `disk` what is written."""

    stages: tuple[Cost, ...]
    seconds: float
    memory: int
    disk: int


def estimate(
    recipe: Recipe, rag: RAGSystem, sites: Mapping[str, Sequence[Example]], dev: Sequence[Example]
) -> Estimate:
    """Time a few steps of every stage, on the first of the real examples; the generator is not the same afterwards."""
    seconds = 2 * len(dev) * _answering(rag, dev)
    rows = max(sites.values(), key=len)
    rag, embedding, retrieving = _small(rag, rows[: max(_timed_rows(stage) for stage in recipe.stages)])
    stages: list[Cost] = []
    checkpoints = 0
    for number, stage in enumerate(recipe.stages, start=1):
        with TemporaryDirectory() as folder:
            made, clock = _timed(recipe, rag, number, rows, folder)
        args = tried(stage.training, "training")
        rounds = 1 if recipe.federated is None else recipe.federated.rounds
        steps = rounds * sum(_steps(args, len(rows)) for rows in sites.values())
        total = steps * clock.step
        count = sum(map(len, sites.values()))
        moved, found = sweeps(made.objective, stage.refresh, args, len(rows))
        total += rounds * (moved * len(sites) * embedding + found * count * retrieving)
        stages.append(Cost(stage.objective, steps, round(clock.step, 4), round(total, 1)))
        trained = sum(p.numel() * p.element_size() for p in made.objective.trainable().values())
        checkpoints = max(checkpoints, 3 * 3 * trained)  # weights and two moments; two kept and one being written
    size = sum(path.stat().st_size for path in recipe.system.rglob("*") if path.is_file())
    kept = 2 if len(recipe.stages) > 1 else 1
    return Estimate(
        tuple(stages), round(seconds + sum(cost.seconds for cost in stages), 1), _peak(), kept * size + checkpoints
    )


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @property
    def step(self) -> float:
        """Seconds of a step, the first one aside."""
        return (self.ends[-1] - self.ends[0]) / max(len(self.ends) - 1, 1)

    def on_step_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def _timed(
    recipe: Recipe, rag: RAGSystem, number: int, rows: Sequence[Example], folder: str
) -> tuple[RAGTrainer, _Clock]:
    few = rows[: _timed_rows(recipe.stages[number - 1])]
    clock = _Clock()
    made = trainer(
        rag, recipe, number, few, [], callbacks=[clock], output_dir=folder, max_steps=_STEPS, save_strategy="no",
        eval_strategy="no", logging_strategy="no", load_best_model_at_end=False, disable_tqdm=True,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    made.remove_callback(ProgressCallback)
    made.train(final=False)
    return made, clock


def _timed_rows(stage: Stage) -> int:
    args = tried(stage.training, "training")
    return _STEPS * args.per_device_train_batch_size * args.gradient_accumulation_steps


def _steps(args: TrainingArguments, examples: int) -> int:
    """Optimiser steps of a run, as the Trainer counts them on one device."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(examples / args.per_device_train_batch_size)
    return math.ceil(max(math.ceil(batches / args.gradient_accumulation_steps), 1) * args.num_train_epochs)


def sweeps(objective: Objective, refresh: str | int, args: TrainingArguments, examples: int) -> tuple[int, int]:
    """How often a training embeds all documents anew, and how often it retrieves for all examples."""
    moves = [name for name in objective.trainable() if name.startswith("retriever/")]
    if not moves or refresh == "never":
        times = 1
    elif isinstance(refresh, str):
        epoch = math.ceil(math.ceil(examples / args.per_device_train_batch_size) / args.gradient_accumulation_steps)
        times = math.ceil(_steps(args, examples) / epoch)
    else:
        times = math.ceil(_steps(args, examples) / refresh)
    documents = any(not name.startswith("retriever/query") for name in moves)
    # at the start documents are fresh still, and at the end they are embedded once more
    return (times if objective.depth else 1) * documents, (times if objective.depth else 0)


def _small(rag: RAGSystem, rows: Sequence[Example]) -> tuple[RAGSystem, float, float]:
    """The system over some of its documents, those that examples name among them, to time steps on.

    Beside it the seconds to embed all documents, and those to retrieve for a question in the whole store.
    """
    store = rag.dense.store
    asked = rows[:_SHOWN]
    named = {id for example in rows for id in (*example.positives, *example.negatives)}
    kept = [d for n, d in enumerate(store.documents()) if n < _SHOWN or d.id in named]
    began = time.perf_counter()
    rag.retriever.retrieve([example.question for example in asked], max(rag.top_k, 1))
    retrieving = (time.perf_counter() - began) / len(asked)
    small = twin(rag, MemoryStore())
    began = time.perf_counter()
    small.dense.add(kept, progress=False)
    embedding = (time.perf_counter() - began) / max(len(kept), 1) * len(store)
    return small, embedding, retrieving


def _answering(rag: RAGSystem, dev: Sequence[Example]) -> float:
    """Seconds of a question."""
    asked = [example.question for example in dev[:_ASKED]]
    if not asked:
        return 0.0
    began = time.perf_counter()
    if rag.generator is None:
        rag.retriever.retrieve(asked, max(rag.top_k, 1))
    else:
        rag.query_batch(asked)
    return (time.perf_counter() - began) / len(asked)


def _peak() -> int:
    """The most memory that this process has had, on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
