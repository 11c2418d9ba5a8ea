from __future__ import annotations

import subprocess
import sys
import tempfile

import pytest
import torch

from fedrag.stores import matrix
from fedrag.stores.matrix import DType, Matrix


def filled(vectors: torch.Tensor) -> Matrix:
    made = Matrix("float32", vectors.shape[1])
    made.write(0, vectors)
    return made


def best(found: list[tuple[int, float]], k: int) -> list[tuple[int, float]]:
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]


def by_definition(vectors: torch.Tensor, query: torch.Tensor, k: int, keep: torch.Tensor) -> list[tuple[int, float]]:
    scores = (vectors.double() * query.double()).sum(1).float()
    rows = keep.nonzero()[:, 0]
    order = scores[rows].argsort(descending=True, stable=True)[:k]
    return list(zip(rows[order].tolist(), scores[rows][order].tolist(), strict=True))


@pytest.mark.parametrize("order", ["as they come", "ascending", "descending"])
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.0005])
def test_more_products_than_are_held_at_a_time(order: str, kept: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # 64 queries go over 125,000 rows at a time; whole numbers, of which many products tie
    vectors = torch.randint(-4, 5, (300_001, 3), generator=generator).float()
    queries = torch.randint(-9, 10, (65, 3), generator=generator).float()
    queries[0] = torch.tensor([1.0, 0.0, 0.0])
    if order != "as they come":
        vectors = vectors[vectors[:, 0].argsort(descending=order == "descending")]
    keep = torch.rand(len(vectors), generator=generator) < kept
    found = list(filled(vectors).nearest(queries, 7, rows=len(vectors), keep=keep))
    assert len(found) == 65
    for i in (0, 1, 63, 64):
        assert best(found[i], 7) == by_definition(vectors, queries[i], 7, keep)
        assert len(found[i]) == len({row for row, _ in found[i]})


@pytest.mark.parametrize("k", [1, 2, 60, 700, 4999, 5000])
def test_as_many_as_are_asked_for(k: int) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors, queries = torch.randn(5000, 4, generator=generator), torch.randn(3, 4, generator=generator)
    keep = torch.ones(5000, dtype=torch.bool)
    for query, found in zip(queries, filled(vectors).nearest(queries, k, rows=5000), strict=True):
        assert best(found, k) == by_definition(vectors, query, k, keep)
    # the rounding error here is small: what is scored again in float64 stays within a few times k
    assert all(len(found) <= 4 * k for found in filled(vectors).nearest(queries, k, rows=5000))


def test_search_is_exact_where_torch_may_multiply_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(2)
    # alike, as the vectors of real encoders are: they differ by less than bfloat16 can tell
    vectors = torch.nn.functional.normalize(torch.randn(20_000, 64, generator=generator) + 3, dim=1)
    queries = torch.nn.functional.normalize(torch.randn(20, 64, generator=generator) + 3, dim=1)
    keep, searched = torch.ones(len(vectors), dtype=torch.bool), filled(vectors)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = list(searched.nearest(queries, 5, rows=len(vectors)))
    finally:
        torch.set_float32_matmul_precision(before)
    for query, candidates in zip(queries, found, strict=True):
        assert best(candidates, 5) == by_definition(vectors, query, 5, keep)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_matrix_of_many_parts_is_one_of_a_single_part(dtype: DType, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    vectors, queries = torch.randn(5000, 8, generator=generator), torch.randn(5, 8, generator=generator)
    whole = Matrix(dtype, 8)
    whole.write(0, vectors)
    monkeypatch.setattr(matrix, "_PART", 9000)
    monkeypatch.setattr(matrix, "_SHARED", 900)
    parts = Matrix(dtype, 8)
    for start in range(0, 5000, 700):
        parts.write(start, vectors[start : start + 700])
    changed = torch.randperm(5000, generator=generator)[:900]
    living = torch.ones(5000, dtype=torch.bool)
    living[1234:1300] = living[3000] = False
    shuffled = torch.randperm(5000, generator=generator)
    for each in (whole, parts):
        each.replace(changed, vectors[changed].flip(0))
        each.write(1000, vectors[:1000])  # over rows that are there
    for rows in (shuffled, shuffled.view(50, 100), living.nonzero()[:, 0]):
        assert torch.equal(parts.take(rows), whole.take(rows))
    for rows in (living.nonzero()[:, 0], shuffled[:4000]):
        some, others = parts.taken(rows), whole.taken(rows)
        assert torch.equal(some.take(torch.arange(len(rows))), others.take(torch.arange(len(rows))))
        for kept in (None, torch.rand(len(rows), generator=generator) < 0.3):
            found = [each.nearest(queries, 9, rows=len(rows), keep=kept) for each in (some, others)]
            assert [best(row, 9) for row in found[0]] == [best(row, 9) for row in found[1]]


def test_growing_never_holds_the_vectors_twice() -> None:
    """In a process of its own, whose peak the kernel keeps: 200 MB come in pieces, a quarter of them lies in a file."""
    code = """
import sys, numpy as np, torch
from pathlib import Path
from fedrag.stores.matrix import Matrix
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
np.ones((25_000, 500), "<f4").tofile(sys.argv[1])
matrix = Matrix("float32", 500, parts=[np.asarray(np.memmap(sys.argv[1], "<f4", "c", shape=(25_000, 500)))])
matrix.take(torch.arange(25_000)).sum()
before = peak()
for start in range(25_000, 100_000, 1000):
    matrix.write(start, torch.ones(1000, 500))
list(matrix.nearest(torch.ones(1, 500), 5, rows=100_000))
print((peak() - before) / 150e6)
"""
    with tempfile.NamedTemporaryFile() as file:
        run = subprocess.run([sys.executable, "-c", code, file.name], capture_output=True, text=True, check=True)
    assert 0.5 < float(run.stdout) < 1.28  # a search takes 25 MB; a copy of what lies in the file would be 50
