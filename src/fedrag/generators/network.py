"""One forward pass of any causal language model, and the two shortcuts that scoring takes when they are exact.

Architectures differ in what they do between their last state and their logits (soft caps, scales) and in what their
caches hold (keys and values, windows, convolution states). Instead of a list of names, two probes run once:

- `head_is_last`: the model is asked for logits while its output head is made to return known numbers. When those come
  out untouched, and what went into the head was the body's last state, then `head(body(x))` is the model, and the head
  may be applied to the few positions that matter.
- `can_share`: a short text is run in two pieces, the first one's cache repeated for two rows and padded on the left.
  When its states equal those of whole rows, a prefix may be computed once for many rows.

>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> tiny = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
>>> network = Network(LlamaForCausalLM(tiny).eval())
>>> network.head_is_last, network.can_share
(True, True)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer


class Network:
    """A causal language model of transformers in evaluation mode, adapters injected; no prompt-learning adapters."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.head: Any = self.model.get_output_embeddings()
        body: Any = getattr(self.model, self.model.base_model_prefix, None)
        self.body: Any = None if body is self.model else body
        self._accepted = set(inspect.signature(self.model.forward).parameters)
        with torch.no_grad():
            self.head_is_last = self._head_is_last()
            self.can_share = self._can_share()

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model knows."""
        return self.model.get_input_embeddings().weight.shape[0]

    def states(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        positions: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
        last: int | None = None,
    ) -> tuple[Tensor, Any]:
        """Run `ids` `[n, t]` under `mask` `[n, past + t]`; return the states and the cache, if one was asked for.

        With `head_is_last` the states are those before the head, `[n, t, d]`, else logits `[n, t, v]`, of the `last`
        positions only where the model can leave the others out. `logits` turns selected states into logits.
        """
        if self.head_is_last:
            output = self.body(**self._arguments(ids, mask, positions, cache, use_cache))
            return output.last_hidden_state, output.past_key_values if use_cache else None
        output = self._forward(ids, mask, positions, cache, use_cache, last)
        return output.logits, getattr(output, "past_key_values", None) if use_cache else None

    def logits(self, states: Tensor) -> Tensor:
        """Return `[s, v]` logits of states `[s, d]` that `states` gave."""
        return self.head(states) if self.head_is_last else states

    def next_logits(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return the `[n, v]` logits after the last of `ids` `[n, t]`, and the cache (`None` from a model without)."""
        output = self._forward(ids, mask, positions, cache, True, 1)
        return output.logits[:, -1], getattr(output, "past_key_values", None)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor | None, cache: Any, use_cache: bool, last: int | None
    ) -> Any:
        keep = {"logits_to_keep": last} if last is not None and "logits_to_keep" in self._accepted else {}
        return self.model(**self._arguments(ids, mask, positions, cache, use_cache), **keep)

    def _arguments(
        self, ids: Tensor, mask: Tensor, positions: Tensor | None, cache: Any, use_cache: bool
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": use_cache}
        if positions is not None and "position_ids" in self._accepted:
            arguments["position_ids"] = positions
        if cache is not None:
            arguments["past_key_values"] = cache
        return arguments

    def _head_is_last(self) -> bool:
        if self.head is None or self.body is None:
            return False
        ids = torch.tensor([[0, 1]], device=self.device)  # [1, 2]
        seen: dict[str, Tensor] = {}

        def replace(_module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
            seen["states"] = inputs[0]
            seen["logits"] = torch.linspace(-1e3, 1e3, output.numel()).view(output.shape).to(output)
            return seen["logits"]

        handle = self.head.register_forward_hook(replace)
        logits = self.model(input_ids=ids, use_cache=False).logits  # [1, 2, v]
        handle.remove()
        states = getattr(self.body(input_ids=ids, use_cache=False), "last_hidden_state", None)  # [1, 2, d]
        return (
            states is not None
            and "logits" in seen
            and logits.shape == seen["logits"].shape
            and torch.equal(logits, seen["logits"].to(logits))
            and states.shape == seen["states"].shape
            and _close(states, seen["states"])
        )

    def _can_share(self) -> bool:
        if "past_key_values" not in self._accepted:
            return False
        one, two = [3, 1, 2, 4, 2, 1, 3], [1, 2, 4, 1, 2, 3]  # prefixes of 4 and 2, suffixes of 3 and 4
        whole = torch.tensor([one, [*two, 0]], device=self.device) % self.vocabulary  # [2, 7]
        mask = torch.tensor([[1] * 7, [1] * 6 + [0]], device=self.device)
        expected, _ = self.states(whole, mask)
        prefix = torch.tensor([one[:4], [0, 0, *two[:2]]], device=self.device) % self.vocabulary  # [2, 4]
        before = torch.tensor([[1] * 4, [0, 0, 1, 1]], device=self.device)
        _, cache = self.states(prefix, before, positions=positions_of(before), use_cache=True)
        if not isinstance(cache, DynamicCache):
            return False
        if not all(isinstance(layer, DynamicLayer | LinearAttentionLayer) for layer in cache.layers):
            return False
        expand(cache, torch.tensor([0, 1, 1], device=self.device))
        suffix = torch.tensor([[*one[4:], 0], two[2:], two[2:]], device=self.device) % self.vocabulary  # [3, 4]
        after = torch.tensor([[1, 1, 1, 0], [1] * 4, [1] * 4], device=self.device)
        both = torch.cat([before[[0, 1, 1]], after], dim=1)  # [3, 8]
        got, _ = self.states(suffix, both, positions=positions_of(both)[:, 4:], cache=cache, use_cache=True)
        return all(
            _close(states, wanted)
            for states, wanted in (
                (got[0, :3], expected[0, 4:]),
                (got[1], expected[1, 2:6]),
                (got[2], expected[1, 2:6]),
            )
        )


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of every token in its own text, `[n, t]`, from an attention mask with padding anywhere."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def expand(cache: Any, rows: Tensor) -> None:
    """Make row i of a cache what its row `rows[i]` was; rows may repeat or be left out."""
    cache.reorder_cache(rows)


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.cpu(), b.cpu()  # not every device has float64
    scale = float(b.abs().max())
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(b.dtype, 5e-2)
    return bool(((a.double() - b.double()).abs().max() <= tolerance * max(scale, 1e-6)).item())
