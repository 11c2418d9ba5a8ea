"""The documents each example trains on: retrieved in one sweep, used until the next, kept with a checkpoint.

More may be retrieved than a step needs. The kept ones are then scored anew for each batch with the encoder as it is,
and the best are used, as in ATLAS (Izacard et al. 2022, arXiv 2208.03299): a retriever that moved a little finds what
it now likes among what it liked before, without a search or a new index.

Under distributed training rank 0 retrieves, and the others receive what it found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from fedrag.errors import InputError, TrainingError
from fedrag.objectives.objective import Objective
from fedrag.ops.modes import evaluating
from fedrag.ops.similarity import all_pairs
from fedrag.progress import track
from fedrag.training.costs import Costs
from fedrag.types import Document, Example

T = TypeVar("T")


class CandidateTable:
    """A look-up in place of an objective's own retrieval.

    Args:
        objective: knows how many documents an example needs and which must be left out.
        over_retrieve: keep this many times the documents that a step needs, and rank them anew at each look-up.
        progress: show a bar while retrieving.
    """

    def __init__(self, objective: Objective, *, over_retrieve: int = 1, progress: bool = True) -> None:
        self.objective = objective
        self.over_retrieve = over_retrieve
        self.progress = progress
        self.costs = Costs()
        self.ids: dict[str, list[str]] = {}
        self._documents: dict[str, Document] = {}

    def __call__(self, batch: Sequence[Example]) -> list[list[Document]]:
        """Documents per example, best first."""
        rows = [[self._documents[id] for id in self.ids[_key(example)]] for example in batch]
        if self.over_retrieve == 1:
            return rows
        with self.costs.timed("rescore_seconds"):
            return [row[: self.objective.depth] for row in self._ranked([e.question for e in batch], rows)]

    def clear(self) -> None:
        """Forget the documents, and what they cost."""
        self.ids = {}
        self.costs.clear()

    def refresh(self, examples: Sequence[Example], *, batch_size: int = 256) -> None:
        """Retrieve anew for all examples, with the encoder as it is now."""
        found: list[list[Document]] = []
        if is_writer():
            with track(total=len(examples), desc="retrieve", unit="q", disable=not self.progress, leave=False) as bar:
                for start in range(0, len(examples), batch_size):
                    batch = examples[start : start + batch_size]
                    found += self._find(batch)
                    bar.update(len(batch))
        found = from_writer(found)
        if empty := sum(not row for row in found):
            raise TrainingError(
                f"no document was found for {empty} of {len(examples)} training examples: add documents to the "
                "knowledge store before training, or exclude fewer"
            )
        self._documents = {document.id: document for row in found for document in row}
        before = self.ids
        self.ids = {_key(e): [document.id for document in row] for e, row in zip(examples, found, strict=True)}
        self.costs.refreshed(before, self.ids)

    def save(self, path: Path) -> None:
        """Write the ids, so that a resumed run goes on with the same documents."""
        path.write_text(json.dumps({"over_retrieve": self.over_retrieve, "ids": self.ids}), encoding="utf-8")

    def load(self, path: Path, examples: Sequence[Example]) -> None:
        """Read what `save` wrote; the documents come from the store. Raises `InputError` where it lacks an example."""
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["over_retrieve"] != self.over_retrieve:
            raise InputError(
                f"the checkpoint was written with over_retrieve={content['over_retrieve']}, this trainer has "
                f"over_retrieve={self.over_retrieve}: resume with what it was written with"
            )
        self.ids = content["ids"]
        if unknown := sum(_key(example) not in self.ids for example in examples):
            raise InputError(
                f"the checkpoint was written with other training examples: {path} has no documents for {unknown} of "
                f"these {len(examples)}; resume with the training set that it was written with"
            )
        wanted = list(dict.fromkeys(id for row in self.ids.values() for id in row))
        self._documents = dict(zip(wanted, self.objective.rag.dense.store.get(wanted), strict=True))

    def _find(self, examples: Sequence[Example]) -> list[list[Document]]:
        if self.over_retrieve == 1:
            return self.objective.find(examples)
        return self.objective.retrieve(examples, self.over_retrieve * self.objective.depth)

    def _ranked(self, questions: Sequence[str], rows: Sequence[Sequence[Document]]) -> list[list[Document]]:
        """Each row by its scores under the encoder as it now is; equals stay in their order."""
        dense = self.objective.rag.dense
        unique = {document.id: document for row in rows for document in row}
        place = {id: i for i, id in enumerate(unique)}
        names = [name for name in self.objective.trainable() if name.startswith("retriever/")]
        query_side = all(name.startswith("retriever/query/") for name in names)
        with evaluating(dense.network):
            embed = dense.document_vectors if query_side else dense.embed_documents
            scores = all_pairs(dense.embed_queries(questions), embed(list(unique.values())))  # [n, unique]
        ranked: list[list[Document]] = []
        for row, mine in zip(rows, scores.cpu(), strict=True):
            own = mine[[place[document.id] for document in row]]  # [k]
            ranked.append([row[k] for k in own.argsort(descending=True, stable=True).tolist()])
        return ranked


def is_writer() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_writer(value: T) -> T:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _key(example: Example) -> str:
    # with the metadata, which may be what decides the documents that an example must not have
    fields = [example.question, example.answers, example.positives, example.negatives, example.metadata]
    parts = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
