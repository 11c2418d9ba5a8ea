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


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(
    ("d", "k", "e", "rank"), [(9, 4, 7, 2), (9, 4, 7, 4), (5, 12, 6, 3), (3, 12, 20, 3), (20, 12, 1, 1), (1, 1, 1, 1)]
)
def test_the_factors_have_the_best_approximation_of_the_dense_product(d, k, e, rank, near):
    left, right, anchor = random(d, k), random(k, e), random(rank, e)
    b, a, singular = Product.of(left, right).best(rank, anchor, near=near)
    wanted, s = dense(left, right, rank)
    assert (b.shape, a.shape, len(singular)) == ((d, rank), (rank, e), min(d, k, e))
    np.testing.assert_allclose((b @ a).numpy(), wanted, atol=1e-11)
    np.testing.assert_allclose(singular.numpy(), s[: len(singular)], atol=1e-12)


def test_the_rows_are_orthogonal_and_as_long_as_the_anchors():
    product, anchor = Product.of(random(9, 4), random(4, 7)), random(5, 7)
    _, a, _ = product.best(3, anchor)
    length = anchor.square().sum(1).mean()
    torch.testing.assert_close(a @ a.T, length * torch.eye(3, dtype=torch.float64))
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()


def test_an_anchor_that_fits_is_kept():
    b, a = random(9, 3), torch.eye(3, 7, dtype=torch.float64) + 0.3 * random(3, 7)
    turn = random(3, 3)
    product = Product.of(b @ torch.linalg.inv(turn), turn @ a)  # the same, from other factors
    found_b, found_a, _ = product.best(3, a, near=True)
    torch.testing.assert_close(found_a, a)
    torch.testing.assert_close(found_b, b)
    skewed = torch.cat([a[:2], a[1:2] + 1e-3 * a[2:]])  # two rows nearly alike
    found_b, found_a, _ = product.best(3, skewed, near=True)
    torch.testing.assert_close(found_b @ found_a, b @ a)
    assert torch.linalg.cond(found_a) == pytest.approx(1)


@pytest.mark.parametrize("near", [False, True])
def test_factors_do_not_depend_on_those_that_came_in(near):
    left, right, turn, anchor = random(9, 4), random(4, 7), torch.linalg.qr(random(4, 4))[0], random(3, 7)
    b, a, _ = Product.of(left, right).best(3, anchor, near=near)
    other_b, other_a, _ = Product.of(-left @ turn, -turn.T @ right).best(3, anchor, near=near)
    torch.testing.assert_close(b, other_b)
    torch.testing.assert_close(a, other_a)


@pytest.mark.parametrize("near", [False, True])
def test_directions_that_the_product_lacks_come_from_the_anchor(near):
    left = torch.tensor([[1.0], [2.0]]).double().repeat(1, 3)  # rank 1
    right = torch.tensor([[1.0, 0.0, 2.0, 0.0]]).double().repeat(3, 1)
    anchor = torch.eye(3, 4, dtype=torch.float64)
    b, a, _ = Product.of(left, right).best(3, anchor, near=near)
    torch.testing.assert_close(b @ a, left @ right)
    assert torch.linalg.matrix_rank(a) == 3
    nothing = Product.of(torch.zeros(5, 2).double(), random(2, 4))
    b, a, singular = nothing.best(3, anchor, near=near)
    assert not b.any()
    assert not singular.any()
    torch.testing.assert_close(a.T @ a, anchor.T @ anchor)  # the anchor itself, up to a rotation
    if near:
        torch.testing.assert_close(a, anchor)


def test_what_float32_could_not_hold_counts_as_nothing():
    left, right = torch.eye(3).double(), torch.diag(torch.tensor([1.0, 2 * NOTHING, NOTHING / 2]).double())
    b, _, _ = Product.of(left, right).best(3, left)
    assert b.any(0).tolist() == [True, True, False]


def test_the_transposed_product():
    product = Product.of(random(9, 4), random(4, 7))
    torch.testing.assert_close(product.T.left @ product.T.right, (product.left @ product.right).T)
    b, a, singular = product.T.best(4, random(4, 9))
    torch.testing.assert_close(b @ a, (product.left @ product.right).T)
    assert product.T.norm() == pytest.approx(product.norm())
    torch.testing.assert_close(singular, product.best(4, random(4, 7))[2])


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
    b, a, _ = Product.of(left, right).best(1, right)
    rest = Product.of(torch.cat([left, -b], 1), torch.cat([right, a]))
    assert rest.norm() <= Product.of(left, right).norm()
