"""Law 2: `logprobs` equals a token-by-token reference, however it is padded, batched, cached, bucketed or shared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from fedrag.generators.causal import CausalLM
from fedrag.generators.score_cache import CachedScorer
from tiny import TEXT, seeded, tiny_lfm2, tiny_llama, tiny_tokenizer

WORDS = sorted(set(TEXT.split()))
SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@cache
def model(name: str) -> Any:
    """Rotary, tied, capped, windowed, absolute and convolutional models: each breaks another careless shortcut."""
    if name == "llama":
        return tiny_llama()
    if name == "tied llama":
        return tiny_llama(tie_word_embeddings=True)
    if name == "lfm2":
        return tiny_lfm2()
    if name == "gemma2":
        return seeded(
            Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=16, sliding_window=12, final_logit_softcapping=3.0)
        )
    if name == "mistral":
        return seeded(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=12))
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return seeded(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.3, **ids),
    )


def generator(name: str = "llama", *, batch_tokens: int = 16384, **settings: Any) -> CausalLM:
    return CausalLM(model(name), tiny_tokenizer(**settings), batch_tokens=batch_tokens)


@torch.no_grad()
def reference(lm: CausalLM, prompts: Sequence[str], targets: Sequence[str]) -> list[float]:
    """The chain rule as it is written down: one token, one forward pass of the whole text, no padding, no cache."""
    totals: list[float] = []
    for prompt, target in zip(prompts, targets, strict=True):
        ids, total = list(lm.prompt_ids(prompt)), 0.0
        for token in lm.target_ids(target):
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
            total += float(logits.log_softmax(-1)[token])
            ids.append(token)
        totals.append(total)
    return totals


def rows(seed: int, queries: int = 2, group: int = 3) -> tuple[list[str], list[str]]:
    """Prompts in groups that share their beginning, and targets of different lengths, one of them empty."""
    random = torch.Generator().manual_seed(seed)

    def some(least: int, most: int) -> str:
        n = int(torch.randint(least, most, (1,), generator=random))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=random).tolist())

    prompts: list[str] = []
    for length in (30, 4, 17)[:queries]:
        start = some(length, length + 1)
        prompts += [f"{start} {some(1, 20)} Answer:" for _ in range(group)]
    return prompts, [some(0, 6) if i else "" for i in range(len(prompts))]


@pytest.mark.parametrize("name", ["llama", "tied llama", "lfm2", "gemma2", "mistral", "gpt2"])
def test_every_architecture_batched_bucketed_and_prefix_shared(name: str):
    prompts, targets = rows(1)
    expected = reference(generator(name), prompts, targets)
    for batch_tokens in (1, 150, 16384):
        lm = generator(name, batch_tokens=batch_tokens)
        for group in (1, 3):
            with torch.no_grad():
                assert lm.logprobs(prompts, targets, group=group).tolist() == pytest.approx(expected, abs=2e-4)
        assert lm.logprobs(prompts, targets, group=3).tolist() == pytest.approx(expected, abs=2e-4)  # with gradient


@given(seed=st.integers(0, 10**6), queries=st.integers(1, 3), group=st.integers(1, 4), batch_tokens=st.integers(1, 400))
@settings(max_examples=25)
def test_any_rows_in_any_grouping(seed: int, queries: int, group: int, batch_tokens: int):
    lm = generator(batch_tokens=batch_tokens)
    prompts, targets = rows(seed, queries, group)
    single = [lm.logprobs([p], [t]).item() for p, t in zip(prompts, targets, strict=True)]
    with torch.no_grad():
        assert lm.logprobs(prompts, targets, group=group).tolist() == pytest.approx(single, abs=2e-4)


def test_prompts_that_are_equal_or_that_continue_one_another():
    lm = generator("llama")
    start = "The capital of France is Paris . The capital of Italy is Rome . Paris lies on the Seine ."
    prompts, targets = [start, start, f"{start} Keys are rotated", start], ["Paris", "Rome", "Ada", ""]
    with torch.no_grad():
        got = lm.logprobs(prompts, targets, group=4).tolist()
    assert got == pytest.approx(reference(lm, prompts, targets), abs=2e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_padding_side_first_token_and_chat_frame(side: str, bos: bool, chat: bool):
    lm = generator(bos=bos, chat=chat)
    lm.tokenizer.padding_side = side
    prompts, targets = rows(2)
    with torch.no_grad():
        got = lm.logprobs(prompts, targets, group=3).tolist()
    assert got == pytest.approx(reference(lm, prompts, targets), abs=2e-4)
    assert lm.prompt_ids(prompts[0]).count(1) == int(bos or chat)


def test_under_autocast():
    lm = generator()
    prompts, targets = rows(3)
    expected = lm.logprobs(prompts, targets, group=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            frozen = lm.logprobs(prompts, targets, group=3)
        trained = lm.logprobs(prompts, targets, group=3)
    assert frozen.tolist() == pytest.approx(expected.tolist(), abs=2e-4)  # a teacher's score does not know of autocast
    assert trained.dtype == torch.float32
    assert trained.tolist() == pytest.approx(expected.tolist(), rel=0.02)
    coarse = trained.detach().bfloat16().float()
    assert not torch.equal(trained.detach(), coarse)  # the sum and the log-softmax were not done in bfloat16


def test_cached_scores_are_the_scores():
    lm = generator()
    prompts, targets = rows(4)
    expected = reference(lm, prompts, targets)
    scorer = CachedScorer(lm)
    with torch.no_grad():
        first, second = scorer.logprobs(prompts, targets, group=3), scorer.logprobs(prompts, targets, group=3)
    assert (scorer.hits, scorer.misses) == (6, 6)
    assert first.tolist() == second.tolist() == pytest.approx(expected, abs=2e-4)


def test_a_target_of_500_tokens_is_finite_and_right():
    lm = CausalLM(tiny_llama(positions=700), tiny_tokenizer("word"))
    target = " ".join(WORDS[i % len(WORDS)] for i in range(500))
    with torch.no_grad():
        got = lm.logprobs(["Answer :"], [target])
    assert len(lm.target_ids(target)) == 501
    assert got.isfinite().all()
    assert got.exp().item() == 0.0  # the probability itself is beyond float32
    assert got.tolist() == pytest.approx(reference(lm, ["Answer :"], [target]), rel=1e-5)


def test_a_tokenizer_whose_merges_would_cross_the_border():
    backend = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2, "Ġ": 3, "aĠ": 4, "aĠb": 5}, [("a", "Ġ"), ("aĠ", "b")]))
    backend.normalizer, backend.decoder = normalizers.Replace(" ", "Ġ"), decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    lm = CausalLM(tiny_llama(vocab=6, bos_token_id=None, eos_token_id=0), wrapped)
    assert wrapped.encode("a b") == [5]
    assert lm.prompt_ids("a") + lm.target_ids("b") == [1, 3, 2, 0]
    with torch.no_grad():
        assert lm.logprobs(["a", "b a"], ["b", "a"]).tolist() == pytest.approx(
            reference(lm, ["a", "b a"], ["b", "a"]), abs=1e-5
        )


def test_the_gradient_is_that_of_the_reference():
    lm = CausalLM(tiny_llama().double(), tiny_tokenizer(), batch_tokens=100)
    prompts, targets = rows(5)
    lm.logprobs(prompts, targets, group=3).sum().backward()
    got = {
        name: parameter.grad.clone() for name, parameter in lm.model.named_parameters() if parameter.grad is not None
    }
    lm.model.zero_grad()
    for prompt, target in zip(prompts, targets, strict=True):
        ids, answer = lm.prompt_ids(prompt), lm.target_ids(target)
        logits = lm.model(input_ids=torch.tensor([[*ids, *answer]])).logits[0]  # [t, v]
        spoken = logits.log_softmax(-1)[len(ids) - 1 : -1]
        spoken[torch.arange(len(answer)), torch.tensor(answer)].sum().backward()
    assert set(got) == {name for name, _ in lm.model.named_parameters()}
    for name, parameter in lm.model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-8, atol=1e-10)


def test_probabilities_of_all_short_targets_are_those_of_the_tree():
    # p(end | x) + sum over one-token y of p(y, end | x), by scoring and from next-token distributions
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2}, unk_token="</s>"))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    lm = CausalLM(tiny_llama(vocab=3, bos_token_id=None, eos_token_id=0).double(), wrapped)
    with torch.no_grad():
        short = lm.logprobs(["a"] * 3, ["", "a", "b"]).exp().sum().item()
        logits = lm.model(input_ids=torch.tensor([[1], [1], [1]])).logits  # [3, 1, 3]
        start = logits[0, -1].softmax(-1)
        ended = lm.model(input_ids=torch.tensor([[1, 1], [1, 2]])).logits[:, -1].softmax(-1)[:, 0]
    assert short == pytest.approx(float(start[0] + (start[1:] * ended).sum()), abs=1e-9)
