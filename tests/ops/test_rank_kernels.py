"""Fusion by hand, and the two ranking losses: values from slow loops, gradients in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrag.ops.ranking import listwise, pointwise, reciprocal_rank_fusion


def test_fusion_is_the_sum_of_reciprocal_ranks():
    fused = dict(reciprocal_rank_fusion([["a", "b", "c"], ["c", "d"]]))
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62})
    weighted = dict(reciprocal_rank_fusion([["a", "b"], ["b"]], constant=1, weights=[2, 0.5]))
    assert weighted == pytest.approx({"a": 2 / 2, "b": 2 / 3 + 0.5 / 2})


def test_equal_scores_go_to_the_ranking_that_is_named_first():
    assert [item for item, _ in reciprocal_rank_fusion([["a", "b"], ["c", "d"]])] == ["a", "c", "b", "d"]
    assert [item for item, _ in reciprocal_rank_fusion([["c", "d"], ["a", "b"]])] == ["c", "a", "d", "b"]
    assert reciprocal_rank_fusion([[], []]) == []


def test_an_item_that_comes_twice_in_a_ranking_counts_once():
    twice = reciprocal_rank_fusion([["a", "b", "a", "b", "c"], ["c", "d"]])
    assert twice == reciprocal_rank_fusion([["a", "b", "c"], ["c", "d"]])


RANKINGS = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), min_size=1, max_size=4)


@given(RANKINGS, st.integers(0, 100))
def test_fusion_has_every_item_once_in_order_whatever_the_order_of_the_rankings(rankings, constant):
    fused = reciprocal_rank_fusion(rankings, constant=constant)
    assert {item for item, _ in fused} == {item for ranking in rankings for item in ranking}
    assert len(fused) == len(dict(fused))
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)
    assert dict(reciprocal_rank_fusion(rankings[::-1], constant=constant)) == dict(fused)


def random_scores(seed):
    torch.manual_seed(seed)
    scores = torch.randn(3, 5, dtype=torch.float64)
    scores[1, 3:] = -torch.inf
    positive = torch.zeros(3, 5, dtype=torch.bool)
    positive[0, 1] = positive[1, 0] = positive[1, 2] = True  # one, two, and none
    return scores.requires_grad_(), positive


def test_pointwise_is_the_mean_of_each_pairs_cross_entropy():
    scores, positive = random_scores(0)
    for n, row in enumerate(scores.tolist()):
        each = [
            -math.log(1 / (1 + math.exp(-s if yes else s)))
            for s, yes in zip(row, positive[n].tolist(), strict=True)
            if s > -math.inf
        ]
        assert pointwise(positive, scores)[n].item() == pytest.approx(sum(each) / len(each))
    pointwise(positive, scores).sum().backward()
    present = torch.isfinite(scores.detach())
    wanted = (torch.sigmoid(scores.detach()) - positive.double()) / present.sum(-1, keepdim=True)
    torch.testing.assert_close(scores.grad, torch.where(present, wanted, 0.0))


def test_listwise_is_minus_the_log_of_the_positives_shares():
    scores, positive = random_scores(1)
    losses = listwise(positive, scores)
    shares = torch.softmax(scores.detach(), -1)
    assert losses[0].item() == pytest.approx(-math.log(shares[0, 1]))
    assert losses[1].item() == pytest.approx(sum(0.5 * math.log(0.5 / shares[1, k]) for k in (0, 2)))
    assert losses[2] == 0
    losses.sum().backward()
    target = positive.double() / positive.sum(-1, keepdim=True).clamp_min(1)
    wanted = torch.where(torch.isfinite(scores.detach()), shares - target, 0.0)
    torch.testing.assert_close(scores.grad[:2], wanted[:2])


def test_scores_that_are_far_off_stay_finite():
    scores = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    positive = torch.tensor([[True, False]])
    for loss in (pointwise, listwise):
        assert loss(positive, scores).item() == pytest.approx(1e4 if loss is pointwise else 2e4)
