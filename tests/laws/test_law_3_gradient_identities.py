"""Law 3: the objectives' gradients are what the papers' formulas say, in float64; marginals are distributions."""

import itertools

import pytest
import torch

from fedrag.ops.divergence import forward_kl, reverse_kl
from fedrag.ops.marginal import rag_sequence, rag_token
from fedrag.ops.targets import likelihood, one_hot, posterior, token_posterior

N, K, T = 3, 5, 4
CLOSE = {"rtol": 0, "atol": 1e-10}


@pytest.fixture
def scores():
    return torch.randn(N, K, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def logprobs():
    return -torch.rand(N, K, dtype=torch.float64) * 5


def gradient(loss, scores):
    (result,) = torch.autograd.grad(loss, scores)
    return result


@pytest.mark.parametrize("target", ["one-hot", "likelihood", "posterior"])
def test_forward_kl_pulls_the_scores_towards_the_target(target, scores, logprobs):
    t = {
        "one-hot": one_hot(torch.eye(N, K, dtype=torch.bool)).double(),
        "likelihood": likelihood(logprobs, 0.7),
        "posterior": posterior(scores, logprobs),
    }[target]
    torch.testing.assert_close(gradient(forward_kl(t, scores).sum(), scores), scores.softmax(-1) - t, **CLOSE)


def test_one_hot_forward_kl_is_cross_entropy(scores):
    label = torch.tensor([4, 0, 2])
    t = one_hot(torch.nn.functional.one_hot(label, K).bool()).double()
    expected = torch.nn.functional.cross_entropy(scores, label, reduction="none")
    torch.testing.assert_close(forward_kl(t, scores), expected, **CLOSE)


def test_reverse_kl_has_the_mode_seeking_gradient(scores, logprobs):
    t = likelihood(logprobs)
    p = scores.softmax(-1)
    expected = p * ((p / t).log() - reverse_kl(t, scores).unsqueeze(-1))
    torch.testing.assert_close(gradient(reverse_kl(t, scores).sum(), scores), expected.detach(), **CLOSE)


def test_rag_sequence_trains_the_retriever_towards_the_posterior(scores, logprobs):
    got = gradient(-rag_sequence(scores, logprobs).sum(), scores)
    torch.testing.assert_close(got, scores.softmax(-1) - posterior(scores, logprobs), **CLOSE)


def test_rag_sequence_weighs_the_generator_by_the_posterior(scores, logprobs):
    logprobs = logprobs.requires_grad_()
    got = gradient(rag_sequence(scores, logprobs).sum(), logprobs)
    torch.testing.assert_close(got, posterior(scores, logprobs), **CLOSE)


def test_rag_token_trains_the_retriever_towards_the_summed_token_posteriors(scores):
    tokens = -torch.rand(N, K, T, dtype=torch.float64) * 5
    mask = torch.ones(N, T, dtype=torch.bool)
    got = gradient(-rag_token(scores, tokens, mask).sum(), scores)
    expected = (scores.softmax(-1).unsqueeze(-1) - token_posterior(scores, tokens)).sum(-1)
    torch.testing.assert_close(got, expected.detach(), **CLOSE)


@pytest.mark.parametrize("kernel", [forward_kl, reverse_kl])
def test_finite_differences_agree(kernel, logprobs):
    scores = torch.randn(N, K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: kernel(likelihood(logprobs), s), (scores,))


@pytest.mark.parametrize("kernel", [forward_kl, reverse_kl])
def test_order_of_candidates_and_a_constant_change_nothing(kernel, scores, logprobs):
    order = torch.randperm(K)
    t = likelihood(logprobs)
    torch.testing.assert_close(kernel(t[:, order], scores[:, order]), kernel(t, scores), **CLOSE)
    torch.testing.assert_close(kernel(t, scores + 7), kernel(t, scores), **CLOSE)


def test_both_marginals_sum_to_one_over_all_answers():
    """Enumerate every answer of three tokens over a vocabulary of three, each document with its own tiny LM."""
    vocabulary, length, k = 3, 3, 4
    scores = torch.randn(1, k, dtype=torch.float64)
    table = {
        prefix: torch.randn(k, vocabulary, dtype=torch.float64).log_softmax(-1)
        for size in range(length)
        for prefix in itertools.product(range(vocabulary), repeat=size)
    }
    mask = torch.ones(1, length, dtype=torch.bool)
    sequence = token = 0.0
    for answer in itertools.product(range(vocabulary), repeat=length):
        logprobs = torch.stack([table[answer[:t]][:, answer[t]] for t in range(length)], -1).unsqueeze(0)  # [1, k, t]
        sequence += rag_sequence(scores, logprobs.sum(-1)).exp().item()
        token += rag_token(scores, logprobs, mask).exp().item()
    assert sequence == pytest.approx(1, abs=1e-12)
    assert token == pytest.approx(1, abs=1e-12)
