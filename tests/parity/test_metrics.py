"""Intervals and p-values against scipy, and against simulation where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedrag.evaluation.statistics import holm, interval, sign_flip


@pytest.mark.parametrize("n", [8, 60, 400])
def test_interval_equals_scipys_percentile_bootstrap(n: int) -> None:
    values = np.random.default_rng(n).beta(0.5, 0.8, size=(n, 3))
    low, high = interval(values)
    for column in range(3):
        theirs = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        # two runs of 10,000 resamples place an end within a few percent of the width
        width = theirs.high - theirs.low
        assert low[column] == pytest.approx(theirs.low, abs=0.04 * width)
        assert high[column] == pytest.approx(theirs.high, abs=0.04 * width)


@given(st.lists(st.integers(-8, 8).map(lambda eighths: eighths / 8), min_size=2, max_size=11))
@settings(max_examples=60)
def test_few_differences_have_scipys_exact_p(differences: list[float]) -> None:
    values = np.array(differences)
    theirs = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(values[:, None]).item() == pytest.approx(theirs.pvalue, abs=1e-12)


@given(st.lists(st.integers(-10, 10), min_size=1, max_size=11))
def test_rounding_does_not_part_sums_that_are_equal(tenths: list[int]) -> None:
    # scipy counts 0.1 + 0.2 - 0.3 as a difference from 0; whole numbers have no such trouble
    whole = np.array(tenths, dtype=np.float64)[:, None]
    assert sign_flip(whole / 10) == sign_flip(whole)


@pytest.mark.parametrize("shift", [0.0, 0.08, 0.15])
def test_many_differences_have_scipys_p_within_its_noise(shift: float) -> None:
    values = np.random.default_rng(3).normal(shift, 0.4, size=60)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    noise = np.sqrt(theirs * (1 - theirs) / 10_000) + 2e-4
    assert sign_flip(values[:, None]).item() == pytest.approx(theirs, abs=5 * noise)


def test_random_and_exact_p_agree_at_the_border() -> None:
    values = np.random.default_rng(5).normal(0.2, 0.4, size=13)
    exact = sign_flip(values[:, None]).item()
    # a 14th difference too small to matter makes the same test random
    random = sign_flip(np.append(values, 1e-9)[:, None]).item()
    assert random == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize(("n", "rate"), [(60, 0.3), (200, 0.9), (40, 0.5)])
def test_intervals_cover_the_true_mean_as_often_as_they_say(n: int, rate: float) -> None:
    values = (np.random.default_rng(n).random((n, 800)) < rate).astype(np.float64)
    low, high = interval(values)
    assert 0.92 < np.mean((low <= rate) & (rate <= high)) < 0.975


def test_intervals_cover_the_true_mean_also_where_success_is_rare() -> None:
    values = (np.random.default_rng(2).random((50, 800)) < 0.01).astype(np.float64)
    low, high = interval(values)
    assert np.mean(values.sum(axis=0) == 0) > 0.5  # where resampling alone would say [0, 0]
    assert np.mean((low <= 0.01) & (high >= 0.01)) > 0.94


def test_cluster_intervals_cover_where_plain_ones_do_not() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(0.5, 0.1, size=(40, 1, 600))
    values = (shared + rng.normal(0, 0.05, size=(40, 8, 600))).reshape(320, 600)
    clusters = np.repeat(np.arange(40), 8).tolist()
    coverage = {}
    for name, given_clusters in (("plain", None), ("clustered", clusters)):
        low, high = interval(values, clusters=given_clusters)
        coverage[name] = np.mean((low <= 0.5) & (high >= 0.5))
    assert coverage["plain"] < 0.7
    assert 0.9 < coverage["clustered"] < 0.98


@pytest.mark.parametrize("n", [11, 50])
def test_p_is_uniform_when_nothing_differs(n: int) -> None:
    values = np.random.default_rng(n).laplace(size=(n, 1000))
    p = sign_flip(values)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(p <= level) == pytest.approx(level, abs=4.5 * np.sqrt(level * (1 - level) / 1000) + 2e-3)


def test_p_is_small_when_something_differs() -> None:
    values = np.random.default_rng(1).normal(0.5, 1.0, size=(100, 1))
    assert sign_flip(values).item() < 1e-3
    assert sign_flip(-values).item() == sign_flip(values).item()


def test_holm_holds_the_family_error_where_single_tests_do_not() -> None:
    p = np.random.default_rng(0).random((2000, 6))
    assert np.mean(p.min(axis=1) < 0.05) > 0.2
    assert np.mean([min(holm(row.tolist())) < 0.05 for row in p]) == pytest.approx(0.05, abs=0.02)
