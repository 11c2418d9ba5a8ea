from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrag.evaluation.statistics import holm, interval, ratio_interval, sign_flip


def columns(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def test_interval_is_deterministic_and_a_column_does_not_depend_on_its_neighbours() -> None:
    values = np.random.default_rng(0).random((40, 3))
    low, high = interval(values, seed=3)
    alone = interval(values[:, 1:2], seed=3)
    assert (low[1], high[1]) == pytest.approx((alone[0].item(), alone[1].item()), abs=1e-12)
    assert interval(values, seed=3)[0].tolist() == low.tolist()
    assert interval(values, seed=4)[0].tolist() != low.tolist()


def test_interval_equals_drawing_every_resample_at_once() -> None:
    # enough rows for several blocks of random numbers
    values = np.random.default_rng(0).random((450, 1))
    drawn = np.random.default_rng(7).integers(450, size=(10_000, 450))
    expected = np.quantile(values[drawn, 0].mean(axis=1), [0.025, 0.975])
    low, high = interval(values, seed=7)
    assert [low.item(), high.item()] == pytest.approx(expected.tolist(), abs=1e-12)


def test_ends_of_three_clusters_are_those_of_all_27_resamples() -> None:
    values = columns([0.0], [0.2], [0.9], [0.8], [0.7], [0.1])
    names = ["x", "y", "y", "y", "x", "z"]
    members = {name: [row for row, own in enumerate(names) if own == name] for name in "xyz"}
    means = [np.mean([values[row] for name in draw for row in members[name]]) for draw in product("xyz", repeat=3)]
    low, high = interval(values, clusters=names)
    # the least and the greatest of the 27 have 1/27 > 2.5 % each
    assert (low.item(), high.item()) == pytest.approx((min(means), max(means)))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.integers(2, 4))
def test_copies_within_a_cluster_add_no_certainty(values: list[float], copies: int) -> None:
    once = columns(*([value] for value in values))
    many, names = np.repeat(once, copies, axis=0), np.repeat(np.arange(len(values)), copies).tolist()
    for one, two in zip(interval(once), interval(many, clusters=names), strict=True):
        assert one.item() == pytest.approx(two.item(), abs=1e-9)
    centred, centred_many = once - 0.5, many - 0.5
    assert sign_flip(centred) == sign_flip(centred_many, clusters=names)


def test_the_order_of_clusters_names_does_not_matter_to_p() -> None:
    values = columns([0.5], [0.1], [-0.2], [0.4])
    assert sign_flip(values, clusters=["a", "b", "a", "b"]) == sign_flip(values, clusters=[2, 1, 2, 1])


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.3085), (1.0, 0.6915, 1.0), (0.5, 0.3458, 0.6542)])
def test_equal_values_have_the_exact_binomial_bound(value: float, low: float, high: float) -> None:
    # Clopper-Pearson for 0 of 10: 1 - 0.025 ** (1 / 10)
    ends = interval(np.full((10, 1), value))
    assert (ends[0].item(), ends[1].item()) == pytest.approx((low, high), abs=1e-4)


def test_equal_values_in_few_clusters_are_less_sure() -> None:
    zeros = np.zeros((10, 1))
    assert interval(zeros, clusters=[0] * 5 + [1] * 5)[1] > interval(zeros)[1]
    ends = interval(columns([0.2], [0.6]), clusters=["same", "same"])
    assert ends[0].item() < 0.02
    assert ends[1].item() > 0.98


def test_equal_differences_are_bounded_on_both_sides() -> None:
    low, high = interval(np.zeros((100, 1)), bounds=(-1, 1))
    assert high.item() == pytest.approx(-low.item()) == pytest.approx(0.0362, abs=1e-4)


def test_p_by_hand() -> None:
    assert sign_flip(columns([1.0], [1.0], [1.0])).item() == 2 / 8
    assert sign_flip(columns([1.0], [1.0], [-1.0])).item() == 1.0
    assert sign_flip(columns([3.0], [1.0], [-1.0], [0.0])).item() == 6 / 8
    assert sign_flip(np.zeros((5, 1))).item() == 1.0


def test_each_column_is_tested_by_its_own_rule() -> None:
    few = np.zeros(40)
    few[:5] = 1.0
    many = np.random.default_rng(0).random(40)
    p = sign_flip(np.stack([few, many], axis=1))
    assert p[0] == 2 / 32
    assert p[1] == 1 / 10_001


def test_differences_that_cancel_within_a_cluster_are_no_evidence() -> None:
    values = np.tile([0.5, -0.5], 10)[:, None]
    assert sign_flip(values, clusters=np.repeat(np.arange(10), 2).tolist()).item() == 1.0


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_by_its_definition(p: list[float]) -> None:
    order = sorted(range(len(p)), key=lambda place: p[place])
    expected = [0.0] * len(p)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p) - rank) * p[place])
        expected[place] = min(1.0, largest)
    assert holm(p) == pytest.approx(expected)


def test_the_interval_of_a_ratio_is_that_of_the_resampled_ratios():
    dice = np.random.default_rng(0)
    before, after = dice.integers(0, 2, 200).astype(float), dice.integers(0, 2, 200).astype(float)
    clusters = [row // 4 for row in range(200)]
    low, high = ratio_interval(after, before, clusters=clusters)
    one, two = (values.reshape(50, 4).sum(1) for values in (before, after))
    drawn = np.random.default_rng(1).integers(50, size=(4000, 50))
    ratios = two[drawn].sum(1) / one[drawn].sum(1)
    assert (low, high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.02)
    assert low < after.mean() / before.mean() < high


def test_a_ratio_to_nothing_is_infinite():
    assert ratio_interval(np.ones(5), np.zeros(5)) == (np.inf, np.inf)
