"""A memory for scores: what a frozen language model thought of an answer once, it need not be asked again.

In the second epoch of retriever training, and after a refresh for all candidates that stayed, the scores of the
language model are known. A score is kept under the hash of the scorer's fingerprint, the prompt and the target, so a
model whose weights changed is asked anew, and what it said before is forgotten.

>>> class Length:
...     fingerprint = "v1"
...     def logprobs(self, prompts, targets, *, group=1):
...         print("asked", len(prompts))
...         return torch.tensor([-float(len(t)) for t in targets])
>>> scorer = CachedScorer(Length())
>>> with torch.no_grad():
...     scorer.logprobs(["Q"], ["Paris"]), scorer.logprobs(["Q", "Q"], ["Paris", "Rome"])
asked 1
asked 1
(tensor([-5.]), tensor([-5., -4.]))
>>> scorer.hits, scorer.misses
(1, 2)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedrag.errors import InputError
from fedrag.generators.scoring import require_pairs


class FingerprintedScorer(Protocol):
    """A `Scorer` that tells when it has changed."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides a score."""
        ...

    def logprobs(self, prompts: Sequence[str], targets: Sequence[str], *, group: int = 1) -> Tensor:
        """Return `[n]` sums of log p(target, EOS | prompt)."""
        ...


class CachedScorer:
    """A `Scorer` that asks another one only for what it has not been asked before. For scores without gradient.

    `hits` and `misses` count pairs. Raises `InputError` where gradients are enabled: a remembered score has none.
    """

    def __init__(self, scorer: FingerprintedScorer) -> None:
        self.scorer = scorer
        self.hits = 0
        self.misses = 0
        self._asked = ""  # the fingerprint of the scorer when it was asked last
        self._scores: dict[bytes, float] = {}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the scorer that is asked."""
        return self.scorer.fingerprint

    def __len__(self) -> int:
        return len(self._scores)

    def memory(self) -> dict[str, Tensor]:
        """Every remembered score, as tensors that a file can hold; none when nothing was asked."""
        if not self._scores:
            return {}
        keys = torch.frombuffer(bytearray(b"".join(self._scores)), dtype=torch.uint8).view(len(self), -1)  # [m, bytes]
        return {"keys": keys, "scores": torch.tensor(list(self._scores.values()), dtype=torch.float64)}  # [m]

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Remember what `memory` gave."""
        keys = [row.numpy().tobytes() for row in memory["keys"]]
        self._scores.update(zip(keys, memory["scores"].tolist(), strict=True))

    def logprobs(self, prompts: Sequence[str], targets: Sequence[str], *, group: int = 1) -> Tensor:
        """Return `[n]` float32 scores on the CPU; only groups of which nothing is known are asked for as groups."""
        if torch.is_grad_enabled():
            raise InputError(
                "a remembered score has no gradient: call logprobs under torch.no_grad(), or the scorer itself"
            )
        require_pairs(prompts, targets, group)
        fingerprint = self.fingerprint
        if self._asked not in ("", fingerprint):
            self._scores.clear()  # of no use any more
        self._asked = fingerprint
        keys = [_key(fingerprint, prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
        unknown = [key not in self._scores for key in keys]
        starts = [start for start in range(0, len(keys), group) if all(unknown[start : start + group])]
        whole = [row for start in starts for row in range(start, start + group)]
        self._ask([(keys[i], prompts[i], targets[i]) for i in whole], group)
        single = {keys[i]: i for i in range(len(keys)) if keys[i] not in self._scores}
        self._ask([(key, prompts[i], targets[i]) for key, i in single.items()], 1)
        asked = len(whole) + len(single)
        self.misses += asked
        self.hits += len(keys) - asked
        return torch.tensor([self._scores[key] for key in keys])

    def _ask(self, rows: list[tuple[bytes, str, str]], group: int) -> None:
        if rows:
            scores = self.scorer.logprobs(
                [prompt for _, prompt, _ in rows], [target for *_, target in rows], group=group
            )
            self._scores.update(zip((key for key, *_ in rows), scores.tolist(), strict=True))


def _key(fingerprint: str, prompt: str, target: str) -> bytes:
    parts = [part.encode("utf-8", "surrogatepass") for part in (fingerprint, prompt, target)]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
