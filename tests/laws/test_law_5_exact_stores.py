"""Law 5: exact stores return what brute force returns, also after upsert, delete, rebuild and reopening."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedrag.filters import compile_filter
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document

IDS = [f"id{i}" for i in range(40)]
ids = st.lists(st.sampled_from(IDS), unique=True, max_size=25)
seeds = st.integers(0, 2**31)
filters = st.sampled_from(
    [
        None,
        {"field": "n", "operator": ">=", "value": 3},
        {"field": "n", "operator": "in", "value": [0, 5]},
        {
            "operator": "OR",
            "conditions": [{"field": "odd", "operator": "exists"}, {"field": "n", "operator": "==", "value": 2}],
        },
    ]
)


def numbers(seed: int, rows: int, width: int) -> torch.Tensor:
    """Vectors of few distinct values, so that ties are common, or of many."""
    generator = torch.Generator().manual_seed(seed)
    if seed % 2:
        return torch.randint(-2, 3, (rows, width), generator=generator).float()
    return torch.randn(rows, width, generator=generator)


class ExactStore(RuleBasedStateMachine):
    """Drive a store and a plain dict side by side."""

    @initialize(dtype=st.sampled_from(["float32", "bfloat16"]))
    def start(self, dtype: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store"
        self.store = MemoryStore(dtype=dtype)
        self.rounded = (lambda v: v.bfloat16().float()) if dtype == "bfloat16" else (lambda v: v)
        self.model: dict[str, tuple[Document, torch.Tensor]] = {}
        self.aside: dict[str, torch.Tensor] = {}
        self.width = 5
        self.rebuilds = 0
        self.saved = False

    @rule(ids=ids, seed=seeds)
    def add(self, ids: list[str], seed: int) -> None:
        vectors = numbers(seed, len(ids), self.width)
        documents = [
            Document(f"text {seed} {i}", id, {"n": (seed + i) % 7} | ({"odd": None} if i % 2 else {}))
            for i, id in enumerate(ids)
        ]
        self.store.add(documents, vectors)
        for document, vector in zip(documents, self.rounded(vectors), strict=True):
            self.model.pop(document.id, None)
            self.aside.pop(document.id, None)
            self.model[document.id] = (document, vector)

    @rule(ids=ids)
    def remove(self, ids: list[str]) -> None:
        assert self.store.remove(ids) == sum(id in self.model for id in ids)
        for id in ids:
            self.model.pop(id, None)

    @rule(ids=ids, seed=seeds)
    def update(self, ids: list[str], seed: int) -> None:
        there = [id for id in ids if id in self.model]
        vectors = numbers(seed, len(there), self.width)
        self.store.update_vectors(there, vectors)
        for id, vector in zip(there, self.rounded(vectors), strict=True):
            self.model[id] = (self.model[id][0], vector)

    @rule(seed=seeds, limit=st.integers(1, 30))
    def rebuild_in_part(self, seed: int, limit: int) -> None:
        rebuild = self.store.rebuild(f"encoder {self.rebuilds}")
        batch = next(rebuild.missing(limit), [])
        vectors = numbers(seed, len(batch), 3 + self.rebuilds % 4)
        rebuild.put([document.id for document in batch], vectors)
        self.aside |= zip([document.id for document in batch], self.rounded(vectors), strict=True)

    @rule(seed=seeds)
    def finish_rebuild(self, seed: int) -> None:
        self.rebuild_in_part(seed, 1000)
        self.store.rebuild(f"encoder {self.rebuilds}").commit()
        self.model = {id: (document, self.aside[id]) for id, (document, _) in self.model.items()}
        self.aside = {}
        if self.model:
            self.width = 3 + self.rebuilds % 4
        assert self.store.fingerprint == f"encoder {self.rebuilds}"
        self.rebuilds += 1

    @rule()
    def save(self) -> None:
        self.store.save(self.path)
        self.saved = True

    @precondition(lambda self: self.saved)
    @rule()
    def save_and_reopen(self) -> None:
        self.store.save(self.path)
        self.store = MemoryStore.open(self.path)

    @rule(seed=seeds, n=st.integers(1, 3), k=st.integers(1, 45), where=filters)
    def search(self, seed: int, n: int, k: int, where: dict | None) -> None:
        queries = numbers(seed, n, self.width)
        keep = compile_filter(where) if where else lambda _: True
        for query, hits in zip(queries, self.store.search(queries, k, where), strict=True):
            scored = [
                (float((vector.double() * query.double()).sum().float()), document)
                for document, vector in self.model.values()
                if keep(document.metadata)
            ]
            expected = sorted(scored, key=lambda pair: (-pair[0], pair[1].id))[:k]
            assert [(hit.score, hit.document) for hit in hits] == expected

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "model"):
            return
        assert len(self.store) == len(self.model)
        assert list(self.store.documents()) == [document for document, _ in self.model.values()]
        if self.model:
            assert torch.equal(self.store.vectors(list(self.model)), torch.stack([v for _, v in self.model.values()]))

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


ExactStore.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestExactStore = ExactStore.TestCase
