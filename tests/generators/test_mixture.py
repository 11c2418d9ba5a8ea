"""Mixtures of prompts: each step of a text, against distributions computed one prompt at a time, without any cache."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrag.errors import BudgetError, InputError
from fedrag.generators.causal import CausalLM
from fedrag.generators.decoding import mix
from fedrag.ops.marginal import rag_token
from fedrag.types import MixtureGenerator
from generating import forward_passes, generator, gpt2, mamba
from tiny import tiny_lfm2, tiny_llama

PROMPTS = ["The capital of France is", "Who wrote the book in Rome ? The clerk of 2019 wrote", "Keys are", "12"]
WEIGHTS = [0.4, 0.3, 0.2, 0.1]
GROUPS = [PROMPTS[:3], PROMPTS[1:2], PROMPTS, PROMPTS[2:]]
SHARES = [[0.5, 0.2, 0.3], [1.0], WEIGHTS, [0.1, 0.9]]


@torch.no_grad()
def reference(lm: CausalLM, prompts: list[str], weights: list[float], steps: int) -> list[int]:
    """Greedy decoding of the mixture as it is written down, in probabilities and float64."""
    written: list[int] = []
    for _ in range(steps):
        mixed: Any = 0
        for prompt, weight in zip(prompts, weights, strict=True):
            logits = lm.model(input_ids=torch.tensor([[*lm.prompt_ids(prompt), *written]]), use_cache=False).logits
            mixed = mixed + weight * logits[0, -1].double().softmax(-1)
        token = int(mixed.argmax())
        if token in (lm.tokens.eos_id, 2):
            break
        written.append(token)
    return written


def test_the_mixture_is_the_weighted_mean_of_the_distributions():
    logits = torch.randn(5, 300, dtype=torch.float64) * 4  # [n, v]
    rows = torch.tensor([[3, 0, 1], [4, 2, 0], [1, 0, 0]])  # of which the last ones stand for nothing
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.3, 0.7, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    wanted = (weights.unsqueeze(-1) * logits.softmax(-1)[rows]).sum(1)  # [g, v]
    got = mix(logits, rows, weights.log())
    torch.testing.assert_close(got.exp(), wanted, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(mix(logits.float(), rows, weights.log()), got.float(), rtol=1e-5, atol=1e-5)
    half = mix(logits.bfloat16(), rows, weights.log())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, mix(logits.bfloat16().float(), rows, weights.log()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(mix(logits, rows, weights.log()), got)


@pytest.mark.parametrize(
    ("model", "chat"),
    [
        (tiny_llama().double(), False),
        (tiny_llama(), True),
        (tiny_lfm2(), False),
        (gpt2(), False),
        (mamba(), False),
    ],
    ids=["llama", "chat", "lfm2", "gpt2", "without cache"],
)
def test_every_step_takes_what_the_mixture_prefers(model: Any, chat: bool):
    lm = generator(model=model, chat=chat, max_length=512)
    texts = lm.generate_mixture(GROUPS, SHARES)
    wanted = [reference(lm, some, shares, 12) for some, shares in zip(GROUPS, SHARES, strict=True)]
    assert texts == [lm.tokens.decode(ids).strip() for ids in wanted]
    assert max(map(len, wanted)) > 3
    if lm.model.config.model_type != "mamba":  # which says its last word again and again
        assert texts[2] not in lm.generate(PROMPTS)  # it is nobody's own answer
    lm.batch_tokens = 90  # one mixture at a time, or two
    assert lm.generate_mixture(GROUPS, SHARES) == texts
    assert [lm.generate_mixture([some], [shares])[0] for some, shares in zip(GROUPS, SHARES, strict=True)] == texts


@given(data=st.data(), seed=st.integers(0, 3))
@settings(max_examples=10)
def test_order_scale_and_pieces_do_not_matter(data: st.DataObject, seed: int):
    lm = generator("word", seed=seed)
    k = data.draw(st.integers(1, 4))
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=k, max_size=k))
    order = data.draw(st.permutations(range(k)))
    (text,) = lm.generate_mixture([PROMPTS[:k]], [weights])
    assert lm.generate_mixture([[PROMPTS[i] for i in order]], [[8 * weights[i] for i in order]]) == [text]
    assert "".join(lm.stream_mixture(PROMPTS[:k], weights)) == text


def test_one_prompt_is_what_generate_gives_and_no_weight_is_no_voice():
    lm = generator()
    alone = lm.generate(PROMPTS)
    assert lm.generate_mixture([[prompt] for prompt in PROMPTS], [[0.3]] * 4) == alone
    assert lm.generate_mixture([PROMPTS] * 2, [[0, 1, 0, 0], [0.0, 0.0, 1e-12, 0.0]]) == alone[1:3]
    assert lm.generate_mixture([[prompt] * 3 for prompt in PROMPTS], [[1, 1, 1]] * 4) == alone
    assert lm.generate_mixture([], []) == []
    assert isinstance(lm, MixtureGenerator)


def test_a_mixture_is_rag_token_decoding():
    """No other word at any step makes what is written so far likelier under RAG-Token."""
    lm = generator("word", max_new_tokens=6)
    scores = torch.tensor([[0.9, 0.7, 0.3, 0.1]])
    (text,) = lm.generate_mixture([PROMPTS], [(scores[0] / 0.5).softmax(-1).tolist()])
    words = text.split()
    assert len(words) > 2
    others = [word for word in lm.tokenizer.get_vocab() if word.isalpha()]
    for step, word in enumerate(words):
        targets = [" ".join([*words[:step], other]) for other in [word, *others]]
        with torch.no_grad():
            pairs = [(prompt, target) for target in targets for prompt in PROMPTS]
            logprobs, mask = lm.token_logprobs(*map(list, zip(*pairs, strict=True)))  # [o * k, t]
        logprobs = logprobs.view(len(targets), 4, -1)[..., : step + 1]  # [o, k, t], their end tokens left out
        marginal = rag_token((scores / 0.5).expand(len(targets), 4), logprobs, mask[::4, : step + 1])  # [o]
        assert marginal[0] >= marginal.max() - 1e-5


def test_prompts_of_one_answer_go_through_the_model_together_within_the_budget():
    lm = generator("word", max_new_tokens=4)
    rows_of = [["the clerk"] * 3, ["the book in Rome"] * 2, ["the"], ["the road"] * 2]
    with forward_passes(lm) as rows:
        lm.generate_mixture(rows_of, [[1.0] * len(some) for some in rows_of])
    assert max(rows) == 8
    lm.batch_tokens = 40  # (4 + 4) tokens: five rows
    with forward_passes(lm) as rows:
        lm.generate_mixture(rows_of, [[1.0] * len(some) for some in rows_of])
    assert set(rows) == {5, 3}
    lm.batch_tokens = 10  # less than any: one mixture at a time, whole
    with forward_passes(lm) as rows:
        lm.generate_mixture(rows_of, [[1.0] * len(some) for some in rows_of])
    assert set(rows) == {3, 2, 1}


def test_stop_strings_and_limits_hold_for_mixtures():
    lm = generator("word", max_new_tokens=30)
    (full,) = lm.generate_mixture([PROMPTS[:2]], [[0.5, 0.5]])
    word = full.split()[4]
    expected = full[: full.index(word)].strip()
    with forward_passes(lm) as rows:
        assert lm.generate_mixture([PROMPTS[:2]], [[0.5, 0.5]], stop=[word]) == [expected]
    assert len(rows) <= 5
    assert "".join(lm.stream_mixture(PROMPTS[:2], [0.5, 0.5], stop=[word])) == expected
    assert lm.generate_mixture([PROMPTS[:2]], [[0.5, 0.5]], max_new_tokens=2)[0].split() == full.split()[:2]
    lm.max_length = 20
    with pytest.raises(BudgetError, match="the answer 30"):
        lm.generate_mixture([["the"], ["the"]], [[1.0], [1.0]])


def test_wrong_mixtures_are_named_without_their_text():
    lm = generator()
    for weights in ([0.5], [0.5, -0.5], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], []):
        with pytest.raises(InputError, match="2 prompts came with the weights") as raised:
            lm.generate_mixture([["Secret", "words"]], [weights])
        assert "Secret" not in str(raised.value)
    with pytest.raises(InputError, match="0 prompts"):
        lm.generate_mixture([[]], [[]])
    with pytest.raises(InputError, match="1 groups of prompts and 2 of weights"):
        lm.generate_mixture([["a"]], [[1.0], [1.0]])
    with pytest.raises(InputError, match="prompts takes a sequence"):
        lm.generate_mixture(["Secret"], [[1.0]])
    with pytest.raises(InputError, match="prompts takes a sequence"):
        lm.stream_mixture("Secret", [1.0])
