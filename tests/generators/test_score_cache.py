from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedrag.errors import InputError
from fedrag.generators.causal import CausalLM
from fedrag.generators.score_cache import CachedScorer
from fedrag.types import Scorer
from tiny import tiny_llama, tiny_tokenizer


class Counting:
    """A scorer that knows how it was asked."""

    def __init__(self) -> None:
        self.fingerprint = "one"
        self.asked: list[tuple[int, int]] = []

    def logprobs(self, prompts: Sequence[str], targets: Sequence[str], *, group: int = 1) -> Tensor:
        self.asked.append((len(prompts), group))
        return torch.tensor([-float(len(p) * 10 + len(t)) for p, t in zip(prompts, targets, strict=True)])


@torch.no_grad()
def test_known_groups_are_not_asked_for_new_ones_are_asked_whole_and_single_ones_singly():
    counting = Counting()
    scorer = CachedScorer(counting)
    assert isinstance(scorer, Scorer)
    first = scorer.logprobs(["a", "bb", "ccc", "dddd"], ["x"] * 4, group=2)
    assert first.tolist() == [-11.0, -21.0, -31.0, -41.0]
    again = scorer.logprobs(["ccc", "eeeee", "bb", "a", "f", "gg"], ["x"] * 6, group=2)
    assert again.tolist() == [-31.0, -51.0, -21.0, -11.0, -11.0, -21.0]
    assert counting.asked == [(4, 2), (2, 2), (1, 1)]
    assert (scorer.hits, scorer.misses, len(scorer)) == (3, 7, 7)


@torch.no_grad()
def test_a_pair_given_twice_is_asked_once_and_pairs_do_not_run_together():
    counting = Counting()
    scorer = CachedScorer(counting)
    assert scorer.logprobs(["a", "a"], ["x", "x"]).tolist() == [-11.0, -11.0]
    scorer.logprobs(["ab"], ["c"])
    assert scorer.logprobs(["a"], ["bc"]).tolist() == [-12.0]  # another pair than ("ab", "c")
    assert scorer.misses == 3 or scorer.misses == 4


@torch.no_grad()
def test_a_changed_scorer_is_asked_anew():
    lm = CausalLM(tiny_llama(), tiny_tokenizer())
    scorer = CachedScorer(lm)
    before = scorer.logprobs(["The"], ["book"])
    lm.model.lm_head.weight.data.mul_(1.1)  # a write that no version counter sees
    after = scorer.logprobs(["The"], ["book"])
    assert scorer.misses == 2
    assert after.item() == pytest.approx(lm.logprobs(["The"], ["book"]).item()) != before.item()


@torch.no_grad()
def test_scores_recalled_under_other_weights_are_not_used():
    lm = CausalLM(tiny_llama(), tiny_tokenizer())
    scorer = CachedScorer(lm)
    before = scorer.logprobs(["The"], ["book"])
    lm.model.lm_head.weight.data.mul_(1.1)
    later = CachedScorer(lm)
    later.recall(scorer.memory())
    assert later.logprobs(["The"], ["book"]).item() != before.item()
    assert (later.hits, later.misses) == (0, 1)


def test_it_refuses_to_forget_a_gradient_and_ragged_groups():
    scorer = CachedScorer(Counting())
    with pytest.raises(InputError, match="no gradient"):
        scorer.logprobs(["a"], ["b"])
    with torch.no_grad(), pytest.raises(InputError, match="group=2"):
        scorer.logprobs(["a"], ["b"], group=2)


def test_scores_of_weights_that_are_gone_are_forgotten():
    lm = CausalLM(tiny_llama(), tiny_tokenizer())
    cached = CachedScorer(lm)
    with torch.no_grad():
        cached.logprobs(["The capital of France is"], ["Paris"])
        next(lm.model.parameters()).mul_(1.5)
        cached.logprobs(["The capital of Italy is"], ["Rome"])
    assert len(cached) == 1
