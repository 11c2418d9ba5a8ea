import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrag.errors import InputError
from fedrag.ops.likelihood import supervised, token_logprobs


@given(st.data())
def test_supervised_equals_a_loop_over_positions(data: st.DataObject):
    n, t = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    labels = [[data.draw(st.sampled_from([-100, 0, 3, 7])) for _ in range(t)] for _ in range(n)]
    hidden = torch.arange(n * t * 2, dtype=torch.float32).view(n, t, 2)
    states, targets, rows = supervised(hidden, torch.tensor(labels))
    expected = [
        (hidden[i, j - 1].tolist(), labels[i][j], i) for i in range(n) for j in range(1, t) if labels[i][j] != -100
    ]
    assert list(zip(states.tolist(), targets.tolist(), rows.tolist(), strict=True)) == expected


def test_supervised_refuses_labels_of_other_positions():
    with pytest.raises(InputError, match=r"\(2, 5, 3\).*\(2, 4\)"):
        supervised(torch.zeros(2, 5, 3), torch.zeros(2, 4, dtype=torch.long))


def test_token_logprobs_equals_the_definition_and_keeps_float64():
    logits, targets = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 6, 3, 3, 1])
    expected = [float(row[i] - row.exp().sum().log()) for row, i in zip(logits, targets, strict=True)]
    got = token_logprobs(logits, targets)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_token_logprobs_is_float32_under_autocast_and_for_half_precision():
    logits, targets = torch.randn(4, 500) * 5, torch.tensor([1, 2, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = token_logprobs(logits, targets)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, token_logprobs(logits, targets))
    half = token_logprobs(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    assert torch.equal(half, token_logprobs(logits.bfloat16().float(), targets))


def test_token_logprobs_of_a_hopeless_token_is_finite():
    assert token_logprobs(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).tolist() == [-1e4]
