from __future__ import annotations

import pytest
import torch

from fedrag.stores.matrix import Matrix


def filled(vectors: torch.Tensor) -> Matrix:
    matrix = Matrix("float32", vectors.shape[1])
    matrix.write(0, vectors)
    return matrix


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
    keep, matrix = torch.ones(len(vectors), dtype=torch.bool), filled(vectors)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = list(matrix.nearest(queries, 5, rows=len(vectors)))
    finally:
        torch.set_float32_matmul_precision(before)
    for query, candidates in zip(queries, found, strict=True):
        assert best(candidates, 5) == by_definition(vectors, query, 5, keep)
