"""The aggregation kernels against exact fractions and dense numpy."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrag.ops.aggregation import NOTHING, Product, fold

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)
weights = st.integers(1, 10**6)


def mean_of(values, given_weights, dtype=torch.float32):
    mean, weight_before = torch.zeros((), dtype=torch.float64), 0.0
    for value, weight in zip(values, given_weights, strict=True):
        fold(mean, weight_before, torch.tensor(value, dtype=dtype), weight)
        weight_before += weight
    return mean


@given(st.lists(st.tuples(numbers, weights), min_size=1, max_size=12))
def test_the_mean_equals_that_of_exact_fractions(rows):
    values, given_weights = zip(*rows, strict=True)
    exact = sum(Fraction(v) * w for v, w in rows) / sum(given_weights)
    largest = max(map(abs, values))
    assert abs(Fraction(mean_of(values, given_weights).item()) - exact) <= Fraction(largest) * len(rows) / 2**50


@given(numbers, st.floats(1e-6, 1e6), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
def test_one_value_and_equal_values_stay_as_they_are_to_the_bit(number, weight, dtype):
    value = torch.tensor(number).clamp(-6e4, 6e4).to(dtype)
    for times in (1, 3):
        mean = mean_of([value.item()] * times, [weight] * times, dtype)
        assert torch.equal(mean.to(dtype), value)


def test_a_long_mean_of_half_precision_is_rounded_once():
    values = (torch.rand(50, 1000) * 4).half()
    mean = torch.zeros(1000, dtype=torch.float64)
    for before, value in enumerate(values):
        fold(mean, before, value, 1)
    assert torch.equal(mean.half(), values.double().mean(0).half())


def dense(left, right, rank):
    """numpy's SVD of the product itself, cut."""
    u, s, v = np.linalg.svd((left @ right).numpy(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank], s


@pytest.mark.parametrize(
    ("d", "k", "e", "rank"), [(9, 4, 7, 2), (9, 4, 7, 4), (5, 12, 6, 3), (3, 12, 20, 3), (20, 12, 1, 1), (1, 1, 1, 1)]
)
def test_refactoring_gives_the_best_approximation_of_the_dense_product(d, k, e, rank):
    left, right = torch.randn(d, k, dtype=torch.float64), torch.randn(k, e, dtype=torch.float64)
    b, a, singular = Product.of(left, right).best(rank)
    best, s = dense(left, right, rank)
    assert (b.shape, a.shape, len(singular)) == ((d, rank), (rank, e), min(d, k, e))
    np.testing.assert_allclose((b @ a).numpy(), best, atol=1e-12)
    np.testing.assert_allclose(singular.numpy(), s[: len(singular)], atol=1e-12)
    torch.testing.assert_close(b.norm(dim=0), singular[:rank].sqrt())  # balanced
    torch.testing.assert_close(a.norm(dim=1), singular[:rank].sqrt())


def test_signs_do_not_depend_on_the_factors_that_came_in():
    left, right = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    b, a, _ = Product.of(left, right).best(3)
    other_b, other_a, _ = Product.of(-left @ turn, -turn.T @ right).best(3)
    torch.testing.assert_close(b, other_b)
    torch.testing.assert_close(a, other_a)
    assert (b.gather(0, b.abs().argmax(0, keepdim=True)) > 0).all()


def test_directions_that_the_product_lacks_are_zero():
    left = torch.tensor([[1.0], [2.0]]).double().repeat(1, 3)  # rank 1
    right = torch.tensor([[1.0, 0.0, 2.0]]).double().repeat(3, 1)
    b, a, _ = Product.of(left, right).best(4)  # more than the matrix has
    assert (b[:, 1:] == 0).all()
    assert (a[1:] == 0).all()
    torch.testing.assert_close(b @ a, left @ right)
    b, a, singular = Product.of(torch.zeros(5, 2).double(), torch.randn(2, 3).double()).best(2)
    assert not b.any()
    assert not a.any()
    assert not singular.any()


def test_what_float32_could_not_hold_counts_as_nothing():
    left, right = torch.eye(3).double(), torch.diag(torch.tensor([1.0, 2 * NOTHING, NOTHING / 2]).double())
    b, _, _ = Product.of(left, right).best(3)
    assert b.any(0).tolist() == [True, True, False]


def test_the_norm_of_a_product_is_that_of_the_dense_one():
    left, right = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    assert Product.of(left, right).norm() == pytest.approx(torch.linalg.matrix_norm(left @ right).item(), rel=1e-12)


def test_the_norm_with_a_matrix_between_the_factors():
    left, middle, right = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 4), (4, 4), (4, 7)))
    wanted = torch.linalg.matrix_norm(left @ middle @ right).item()
    assert Product.of(left, right).norm(middle) == pytest.approx(wanted, rel=1e-12)


def test_the_norm_of_a_product_that_cancels_keeps_its_digits():
    left, right = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    change = 1e-11 * torch.randn(9, 4, dtype=torch.float64)
    found = Product.of(torch.cat([left + change, -left], 1), torch.cat([right, right])).norm()
    assert found == pytest.approx(torch.linalg.matrix_norm(change @ right).item(), rel=1e-3)


def test_a_product_too_large_for_any_memory_is_never_formed():
    left, right = torch.randn(400_000, 2, dtype=torch.float64), torch.randn(2, 400_000, dtype=torch.float64)  # 1.3 TB
    b, a, _ = Product.of(left, right).best(1)
    rest = Product.of(torch.cat([left, -b], 1), torch.cat([right, a]))
    assert rest.norm() <= Product.of(left, right).norm()
