from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from fedrag.generators.network import Network, _close, positions_of
from tiny import seeded, tiny_lfm2, tiny_llama

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 1e-4,  # logits so small that a soft cap hardly shows in them
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def test_plain_models_take_both_shortcuts():
    for model in (tiny_llama(), tiny_llama(tie_word_embeddings=True), tiny_lfm2()):
        network = Network(model)
        assert (network.head_is_last, network.can_share) == (True, True)


@pytest.mark.parametrize(
    "model",
    [
        seeded(Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8)),
        seeded(GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=3.0)),
    ],
    ids=["soft cap", "scale"],
)
def test_what_follows_the_head_is_noticed_also_when_logits_are_small(model: Any):
    assert not Network(model).head_is_last


def test_caches_that_cannot_be_repeated_are_left_alone():
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert not Network(seeded(MambaForCausalLM, config)).can_share


def test_a_cache_that_is_not_used_rightly_is_noticed():
    class BodyDeaf(torch.nn.Module):
        def __init__(self, body: torch.nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, past_key_values: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            output = self.body(**kwargs)
            output.past_key_values = output.past_key_values if past_key_values is None else past_key_values
            return output

    model: Any = tiny_llama()
    embeddings = model.get_input_embeddings()
    model.model = BodyDeaf(model.model)
    model.get_input_embeddings = lambda: embeddings
    assert not Network(model).can_share


def test_the_probe_leaves_no_hook_behind():
    model = tiny_llama()
    Network(model)
    assert not model.lm_head._forward_hooks


def test_positions_count_what_is_seen():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 1]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 1, 1, 2]]


class Metal(torch.Tensor):
    """A tensor on a device without float64."""

    def double(self) -> Any:
        raise TypeError("this device has no float64")

    def cpu(self, *_: Any, **__: Any) -> Any:
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_compare_on_devices_without_float64(dtype: torch.dtype):
    one, two = (torch.tensor([1.0, last], dtype=dtype).as_subclass(Metal) for last in (2.0, 3.0))
    assert _close(one, one)
    assert not _close(one, two)
