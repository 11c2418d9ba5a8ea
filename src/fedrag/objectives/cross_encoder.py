"""Cross-encoders as scorers: models that read a question and a passage together and say how relevant it is.

>>> class Overlap:
...     def predict(self, pairs):
...         return [len(set(question.split()) & set(text.split())) for question, text in pairs]
>>> PairScorer(Overlap()).logprobs(["a key", "a key"], ["the key", "a key"])
tensor([1., 2.])
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from fedrag.errors import ConfigError
from fedrag.ops.fingerprint import Fingerprint
from fedrag.ops.modes import evaluating


class Judge(Protocol):
    """Anything with the `predict` of a sentence-transformers `CrossEncoder`."""

    def predict(self, inputs: list[tuple[str, str]], /) -> Any:
        """Return one score per (question, text)."""
        ...


class PairScorer:
    """A judge behind the protocol of `CachedScorer`: questions are its prompts, texts its targets.

    The fingerprint is that of its weights; a judge that is no `nn.Module` has its class's name for one, and must not
    change.

    Args:
        judge: a `CrossEncoder`, or any object with its `predict`.
        logits: ask a `CrossEncoder` for its output before the activation, which is a sigmoid by default.
    """

    def __init__(self, judge: Judge, *, logits: bool = False) -> None:
        self.judge = judge
        self.settings: dict[str, Any] = {}
        if isinstance(judge, CrossEncoder):
            self.settings = {"show_progress_bar": False, **({"activation_fn": nn.Identity()} if logits else {})}
        self._weights = Fingerprint(judge) if isinstance(judge, nn.Module) else None

    @property
    def fingerprint(self) -> str:
        """Hash of the judge's weights, or its name."""
        return self._weights() if self._weights else f"{type(self.judge).__module__}.{type(self.judge).__qualname__}"

    def logprobs(self, prompts: Sequence[str], targets: Sequence[str], *, group: int = 1) -> Tensor:
        """Return `[n]` scores of (question, text) pairs. Raises `ConfigError` unless the judge gives one for each."""
        pairs = list(zip(prompts, targets, strict=True))
        with evaluating(self.judge) if isinstance(self.judge, nn.Module) else nullcontext():
            scores = torch.as_tensor(self.judge.predict(pairs, **self.settings)).float().cpu()
        if scores.shape != (len(pairs),):
            raise ConfigError(
                f"{type(self.judge).__name__}.predict gave scores of shape {tuple(scores.shape)} for {len(pairs)} "
                "pairs of question and text: take one with a single label, which gives one score per pair"
            )
        return scores
