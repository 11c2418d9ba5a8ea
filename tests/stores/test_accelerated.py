"""Approximate search: its recall is true, its scores are true, and it is never asked about what it does not know."""

from __future__ import annotations

import pytest
import torch

from fedrag.errors import InputError, StoreError
from fedrag.stores.matrix import Matrix
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document
from stores.contract import StoreContract, brute_force, ids_and_scores

WIDTH = 16


def clustered(count: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(40, width, generator=torch.Generator().manual_seed(99))
    return centers[torch.randint(40, (count,), generator=generator)] + 0.5 * torch.randn(
        count, width, generator=generator
    )


VECTORS = clustered(3000)
DOCUMENTS = [Document(f"text {n}", f"d{n:04}", {"row": n}) for n in range(3000)]
QUERIES = clustered(50, seed=1)


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.add(DOCUMENTS, VECTORS)
    return made


def recall(store: MemoryStore, documents: list[Document], vectors: torch.Tensor, queries: torch.Tensor) -> float:
    """By the definition; checks on the way that every score is the true one and that there are ten hits, in order."""
    row = {document.id: n for n, document in enumerate(documents)}
    right = 0
    for query, hits in zip(queries, store.search(queries, 10), strict=True):
        found = ids_and_scores(hits)
        assert len(found) == len({id for id, _ in found}) == 10
        assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
        for id, score in found:
            assert score == float((vectors[row[id]].double() * query.double()).sum().float())
        right += len({id for id, _ in found} & {id for id, _ in brute_force(documents, vectors, query, 10)})
    return right / (10 * len(queries))


def test_the_recall_that_is_told_is_the_true_one(store: MemoryStore) -> None:
    assert store.acceleration is None
    exact = store.search(QUERIES, 10)
    told = store.accelerate(queries=QUERIES, floor=0.0)
    assert told == store.acceleration
    assert (told.queries, told.documents, told.search_width) == (50, 3000, 64)
    assert told.recall >= 0.98
    assert f"recall@10 {told.recall:.3f} over 50 queries of 3,000 documents" in str(told)
    assert recall(store, DOCUMENTS, VECTORS, QUERIES) == pytest.approx(told.recall)
    assert store.search(QUERIES, 400) == _exactly(400)  # too deep for the graph
    assert [len(hits) for hits in exact] == [10] * 50


def test_a_search_too_deep_for_the_graph_goes_over_the_matrix_once(store: MemoryStore, monkeypatch) -> None:
    store.accelerate()
    asked = []
    nearest = Matrix.nearest

    def noted(self: Matrix, queries: torch.Tensor, k: int, **settings):
        asked.append((len(queries), k))
        return nearest(self, queries, k, **settings)

    monkeypatch.setattr(Matrix, "nearest", noted)
    assert store.search(QUERIES, 200) == _exactly(200)
    assert asked[0] == (50, 200)
    assert len(asked) == 2  # of which one is the exact store's


def _exactly(k: int) -> list:
    plain = MemoryStore()
    plain.add(DOCUMENTS, VECTORS)
    return plain.search(QUERIES, k)


def test_a_poor_graph_is_told_or_refused(store: MemoryStore) -> None:
    generator = torch.Generator().manual_seed(5)
    hard = torch.nn.functional.normalize(torch.randn(3000, 256, generator=generator), dim=1)
    store = MemoryStore()
    store.add(DOCUMENTS, hard)
    queries = torch.randn(30, 256, generator=generator)
    with pytest.raises(StoreError, match=r"recall@10 of 0\.\d+ over 30 queries at its widest, and 1\.0 is wanted"):
        store.accelerate(queries=queries, floor=1.0, connectivity=2, build_width=2)
    assert store.acceleration is None
    assert [ids_and_scores(hits) for hits in store.search(queries[:3], 5)] == [
        brute_force(DOCUMENTS, hard, query, 5) for query in queries[:3]
    ]
    told = store.accelerate(queries=queries, floor=0.0, connectivity=2, build_width=2)
    assert told.recall < 0.9
    # where it finds less than ten, a search is exact
    assert told.recall <= recall(store, DOCUMENTS, hard, queries) <= told.recall + 0.05
    assert store.accelerate(queries=queries, floor=0.9).search_width > 64  # it looks wider until it suffices


def test_what_comes_goes_and_changes_is_found(store: MemoryStore) -> None:
    store.accelerate()
    new = [Document("new", f"new{n}", {"row": -n}) for n in range(5)]
    added = 3 * QUERIES[:5]
    store.add(new, added)
    assert [hits[0].document.text for hits in store.search(QUERIES[:5], 10)] == ["new"] * 5
    removed = {hit.document.id for hits in store.search(QUERIES, 10) for hit in hits[:6]}
    store.remove(list(removed))
    replaced = Document("replaced", "d0000")
    store.add([replaced], -QUERIES[:1])
    documents = [d for d in [*DOCUMENTS[1:], *new] if d.id not in removed] + [replaced]
    every = dict(zip([d.id for d in [*DOCUMENTS, *new]], [*VECTORS, *added], strict=True)) | {"d0000": -QUERIES[0]}
    vectors = torch.stack([every[d.id] for d in documents])
    assert store.acceleration is not None
    assert recall(store, documents, vectors, QUERIES) > 0.95
    where = {"field": "row", "operator": "<", "value": 40}
    for query, hits in zip(QUERIES[:5], store.search(QUERIES[:5], 30, where), strict=True):
        kept = [(d, v) for d, v in zip(documents, vectors, strict=True) if "row" in d.metadata]
        expected = brute_force([d for d, _ in kept], torch.stack([v for _, v in kept]), query, 30, where)
        assert ids_and_scores(hits) == expected


def test_a_graph_goes_on_over_the_files_of_a_saved_store(store: MemoryStore, tmp_path) -> None:
    store.accelerate()
    before = store.search(QUERIES, 10)
    store.save(tmp_path / "s")
    assert store.search(QUERIES, 10) == before
    store.add([Document("new", f"new{n}") for n in range(5)], 3 * QUERIES[:5])
    store.save(tmp_path / "s")
    assert store.acceleration is not None
    assert [hits[0].document.id for hits in store.search(QUERIES[:5], 10)] == [f"new{n}" for n in range(5)]


def test_ten_hits_come_though_all_that_is_near_went(store: MemoryStore) -> None:
    store.accelerate()
    near = [hit.document.id for hit in store.search(QUERIES[:1], 60)[0]]
    store.remove(near)
    assert store.acceleration is not None
    left = [(d, v) for d, v in zip(DOCUMENTS, VECTORS, strict=True) if d.id not in set(near)]
    expected = brute_force([d for d, _ in left], torch.stack([v for _, v in left]), QUERIES[0], 10)
    assert ids_and_scores(store.search(QUERIES[:1], 10)[0]) == expected


@pytest.mark.parametrize("change", ["moved", "rebuilt", "most removed", "reopened"])
def test_a_stale_graph_is_never_asked(store: MemoryStore, change: str, tmp_path) -> None:
    store.accelerate()
    documents, vectors = DOCUMENTS, VECTORS
    ids = [document.id for document in documents]
    if change == "moved":
        vectors = VECTORS.flip(0)
        store.update_vectors(ids, vectors)
    elif change == "rebuilt":
        vectors = clustered(3000, seed=7)
        store.rebuild("new").put(ids, vectors)
        store.rebuild("new").commit()
    elif change == "most removed":
        store.remove(ids[:2000])
        documents, vectors = documents[2000:], vectors[2000:]
    else:
        store.save(tmp_path / "s")
        assert store.acceleration is not None
        store = MemoryStore.open(tmp_path / "s")
    assert store.acceleration is None
    for query, hits in zip(QUERIES, store.search(QUERIES, 10), strict=True):
        assert ids_and_scores(hits) == brute_force(documents, vectors, query, 10)
    store.accelerate()
    assert recall(store, documents, vectors, QUERIES) > 0.95


def test_the_same_vectors_make_the_same_graph(store: MemoryStore) -> None:
    store.accelerate()
    other = MemoryStore()
    for start in range(0, 3000, 500):
        other.add(DOCUMENTS[start : start + 500], VECTORS[start : start + 500])
    other.accelerate()
    assert store.search(QUERIES, 10) == other.search(QUERIES, 10)
    assert store.search(QUERIES, 10) == [store.search(query[None], 10)[0] for query in QUERIES]


def test_long_and_short_vectors_in_either_dtype() -> None:
    lengths = torch.logspace(-3, 5, 3000)[torch.randperm(3000, generator=torch.Generator().manual_seed(2))]
    vectors = torch.nn.functional.normalize(VECTORS, dim=1) * lengths[:, None]
    for dtype in ("float32", "bfloat16"):
        store = MemoryStore(dtype=dtype)
        store.add(DOCUMENTS, vectors)
        stored = store.vectors([document.id for document in DOCUMENTS])
        told = store.accelerate(queries=QUERIES, floor=0.0)
        assert recall(store, DOCUMENTS, stored, QUERIES) == pytest.approx(told.recall, abs=0.05)


def test_wrong_calls_are_named(store: MemoryStore) -> None:
    with pytest.raises(InputError, match="nothing to accelerate"):
        MemoryStore().accelerate()
    with pytest.raises(InputError, match="one query at least"):
        store.accelerate(queries=torch.empty(0, WIDTH))
    with pytest.raises(InputError, match="3 wide"):
        store.accelerate(queries=torch.ones(2, 3))
    for wrong in ({"floor": 2}, {"floor": float("nan")}, {"connectivity": -1}, {"connectivity": 1}, {"build_width": 0}):
        with pytest.raises(InputError, match="a floor from 0 to 1, connectivity >= 2 and build_width >= 1"):
            store.accelerate(**wrong)
    for count in (1, 2, 12):
        few = MemoryStore()
        few.add(DOCUMENTS[:count], VECTORS[:count])
        few.accelerate()
        assert ids_and_scores(few.search(QUERIES[:1], 20)[0]) == brute_force(
            DOCUMENTS[:count], VECTORS[:count], QUERIES[0], 20
        )


class Accelerated(MemoryStore):
    """Accelerated after every add."""

    def add(self, documents, vectors):
        super().add(documents, vectors)
        if len(self):
            self.accelerate(floor=0.0)


class TestAcceleratedStore(StoreContract):
    """Small stores, in which the graph finds everything: all promises of an exact store hold."""

    @pytest.fixture
    def store(self):
        return Accelerated

    def test_ties_go_to_the_smaller_id(self, store) -> None:
        # of two hundred equal documents it looks at ten: which, it does not say
        filled = store()
        filled.add(DOCUMENTS[:200], VECTORS[:1].expand(200, WIDTH))
        hits = filled.search(VECTORS[:1], 5)[0]
        assert {hit.score for hit in hits} == {float((VECTORS[0].double() ** 2).sum().float())}
        assert [hit.document.id for hit in hits] == sorted({hit.document.id for hit in hits})
