"""The kernels against slow loops, and what they promise about missing candidates."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrag.ops.divergence import forward_kl, reverse_kl
from fedrag.ops.gradcache import embed_in_pieces
from fedrag.ops.marginal import rag_sequence, rag_token
from fedrag.ops.modes import evaluating, only_training
from fedrag.ops.similarity import all_pairs, own_candidates
from fedrag.ops.targets import entropy, leave_one_out, likelihood, one_hot, posterior, token_posterior

numbers = st.floats(-20, 20, allow_nan=False, width=32)
rows = st.lists(numbers, min_size=2, max_size=6)


@given(rows, rows)
def test_kl_equals_the_sum_over_candidates(teacher, student):
    k = min(len(teacher), len(student))
    t = torch.softmax(torch.tensor([teacher[:k]], dtype=torch.float64), -1)
    s = torch.tensor([student[:k]], dtype=torch.float64)
    p = torch.softmax(s, -1)
    forward = sum(a * (math.log(a) - math.log(b)) for a, b in zip(t[0].tolist(), p[0].tolist(), strict=True) if a > 0)
    reverse = sum(b * (math.log(b) - math.log(a)) for a, b in zip(t[0].tolist(), p[0].tolist(), strict=True) if b > 0)
    assert forward_kl(t, s).item() == pytest.approx(forward, abs=1e-9)
    assert reverse_kl(t, s).item() == pytest.approx(reverse, abs=1e-9)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_a_missing_candidate_changes_neither_value_nor_gradient(divergence):
    t, s = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.3, -0.4]], requires_grad=True)
    padded_t = torch.tensor([[0.2, 0.8, 0.0]])
    padded_s = torch.tensor([[0.3, -0.4, -torch.inf]], requires_grad=True)
    divergence(t, s).sum().backward()
    divergence(padded_t, padded_s).sum().backward()
    assert divergence(padded_t, padded_s).item() == pytest.approx(divergence(t, s).item())
    torch.testing.assert_close(padded_s.grad[:, :2], s.grad)
    assert padded_s.grad[0, 2] == 0


def test_targets_are_distributions_without_gradient():
    scores = torch.randn(3, 4, requires_grad=True)
    logprobs = torch.randn(3, 4, requires_grad=True)
    tokens = torch.randn(3, 4, 5, requires_grad=True)
    for target in (likelihood(logprobs, 0.1), leave_one_out(logprobs, 0.1), posterior(scores, logprobs)):
        assert not target.requires_grad
        torch.testing.assert_close(target.sum(-1), torch.ones(3))
    assert not token_posterior(scores, tokens).requires_grad
    torch.testing.assert_close(token_posterior(scores, tokens).sum(1), torch.ones(3, 5))
    assert one_hot(torch.tensor([[True, False], [True, True], [False, False]])).tolist() == [[1, 0], [0.5, 0.5], [0, 0]]


def test_likelihood_follows_the_temperature():
    logprobs = torch.tensor([[-1.0, -2.0]])
    assert likelihood(logprobs, 0.5)[0, 0].item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert entropy(likelihood(logprobs, 1e6)).item() == pytest.approx(math.log(2), abs=1e-5)


def test_a_candidate_matters_as_much_as_the_answer_loses_without_it():
    without = torch.tensor([[-1.0, -3.0, -torch.inf]])  # the third one is missing
    t = leave_one_out(without, 0.5)
    assert t[0].tolist() == pytest.approx([1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4)), 0])
    s = torch.tensor([[0.3, -0.4, -torch.inf]], requires_grad=True)
    forward_kl(t, s).sum().backward()
    torch.testing.assert_close(s.grad, s.detach().softmax(-1) - t)


def test_own_candidates_are_inner_products_in_their_places():
    q, d = torch.randn(2, 3), torch.randn(3, 3)
    owner, slot = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    scores = own_candidates(q, d, owner, slot, 2)
    torch.testing.assert_close(scores[0], torch.stack([q[0] @ d[0], q[0] @ d[1]]))
    torch.testing.assert_close(scores[1, 0], q[1] @ d[2])
    assert scores[1, 1] == -torch.inf


def test_scores_are_float32_under_autocast():
    q = torch.randn(4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all_pairs(q.bfloat16(), q.bfloat16()).dtype == torch.float32
        torch.testing.assert_close(all_pairs(q, q), (q.double() @ q.double().T).float())


def test_marginals_agree_for_one_document_and_for_one_token():
    scores, tokens = torch.randn(2, 3), -torch.rand(2, 3, 4)
    mask = torch.ones(2, 4, dtype=torch.bool)
    one = tokens[:, :1]
    torch.testing.assert_close(rag_sequence(scores[:, :1], one.sum(-1)), rag_token(scores[:, :1], one, mask))
    short = tokens[..., :1]
    torch.testing.assert_close(rag_sequence(scores, short.sum(-1)), rag_token(scores, short, mask[:, :1]))


def test_marginal_token_ignores_padding():
    scores, tokens = torch.randn(1, 3), -torch.rand(1, 3, 4)
    mask = torch.tensor([[True, True, False, False]])
    full = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(rag_token(scores, tokens, mask), rag_token(scores, tokens[..., :2], full))


def test_embedding_in_pieces_gives_the_gradients_of_embedding_at_once():
    layer = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh())
    inputs = torch.randn(10, 5)

    def gradient(size):
        layer.zero_grad()
        vectors = embed_in_pieces(lambda rows: layer(torch.stack(list(rows))), list(inputs), size)
        (vectors @ vectors.T).logsumexp(-1).sum().backward()
        return layer[0].weight.grad.clone()

    torch.testing.assert_close(gradient(3), gradient(10))


def test_embedding_in_pieces_holds_the_activations_of_one_piece():
    held: list[int] = []
    layer = torch.nn.Sequential(torch.nn.Linear(5, 100), torch.nn.ReLU(), torch.nn.Linear(100, 2))

    def kept(size):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            embed_in_pieces(lambda rows: layer(torch.stack(list(rows))), list(torch.randn(64, 5)), size)
        return count

    held = [kept(64), kept(8)]
    assert held[1] < held[0] / 4


def test_evaluating_restores_every_mode():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    module.train()
    module[1].eval()
    with evaluating(module):
        assert not module[0].training
        assert not torch.is_grad_enabled()
    assert [module.training, module[0].training, module[1].training, module[1][0].training] == [
        True,
        True,
        False,
        False,
    ]


def test_only_training_restores_flags_also_after_an_error():
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def fail():
        with only_training([b], [a, b]):
            assert not a.requires_grad
            assert b.requires_grad
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert a.requires_grad
    assert not b.requires_grad
