"""What a checkpoint of `RAGTrainer` holds beside the Trainer's own state.

`trainable.safetensors`: what is trained, by canonical name; `candidates.json`: the documents in use, where they come
from a store; `extra_state.safetensors`: what the objective should not have to compute again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fedrag.errors import InputError
from fedrag.objectives.objective import Objective
from fedrag.retrievers.dense import DenseRetriever
from fedrag.retrievers.nested import find
from fedrag.training.candidates import CandidateTable
from fedrag.types import Example

_WEIGHTS = "trainable.safetensors"
_CANDIDATES = "candidates.json"
_EXTRA = "extra_state.safetensors"


def write(folder: Path, objective: Objective, candidates: CandidateTable) -> None:
    """Write all three; the last two where there is something to keep."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: p.detach().contiguous().clone() for name, p in objective.trainable().items()}
    save_file(state, folder / _WEIGHTS)
    if candidates.ids and find(objective.rag.retriever, DenseRetriever) is not None:
        candidates.save(folder / _CANDIDATES)
    if extra := objective.extra_state():
        save_file(extra, folder / _EXTRA)


def read_weights(folder: Path, objective: Objective) -> None:
    """Put a checkpoint's weights in place; every name and shape must be as it is now."""
    if not (folder / _WEIGHTS).is_file():
        raise InputError(f"{folder} is no checkpoint of RAGTrainer: there is no {_WEIGHTS} in it")
    state = load_file(folder / _WEIGHTS)
    here = objective.trainable()
    wrong = sorted(set(state) ^ set(here)) or [n for n, p in here.items() if p.shape != state[n].shape]
    if wrong:
        raise InputError(
            f"the checkpoint {folder} belongs to another objective or system: {wrong[0]!r} is not the same in "
            "both; resume with what wrote it"
        )
    with torch.no_grad():
        for name, parameter in here.items():
            parameter.copy_(state[name])


def read_rest(folder: Path, objective: Objective, candidates: CandidateTable, examples: Sequence[Example]) -> None:
    """Take back the objective's state and the candidates, where the checkpoint has them."""
    if (folder / _EXTRA).is_file():
        objective.load_extra_state(load_file(folder / _EXTRA))
    if (folder / _CANDIDATES).is_file():
        candidates.load(folder / _CANDIDATES, examples)
