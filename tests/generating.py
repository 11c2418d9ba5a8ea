"""Tiny generators for the tests, some of them odd, and what they do to be counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from fedrag.generators.causal import CausalLM
from tiny import Kind, seeded, tiny_llama, tiny_tokenizer


def generator(kind: Kind = "bpe", *, model: Any = None, chat: bool = False, seed: int = 0, **settings: Any) -> CausalLM:
    tokenizer = tiny_tokenizer(kind, chat=chat)
    model = tiny_llama(vocab=len(tokenizer), seed=seed) if model is None else model
    return CausalLM(model, tokenizer, **{"max_new_tokens": 12, **settings})


def gpt2() -> Any:
    """Positions that are learnt, not rotated: a shift by padding shows."""
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.3)
    config.bos_token_id, config.eos_token_id = 1, 2
    return seeded(GPT2LMHeadModel, config)


def mamba() -> Any:
    return seeded(
        MambaForCausalLM, MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=2)
    )


@contextmanager
def forward_passes(lm: CausalLM) -> Iterator[list[int]]:
    """Count the model's forward passes, by the number of rows in each."""
    rows: list[int] = []
    handle = lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield rows
    handle.remove()
