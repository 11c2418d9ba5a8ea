"""An answer on its way, and what watches the model that writes it.

A thread writes, an event loop reads. `Meter` stands before the model and counts what enters it; it also ends the
writing when nobody reads any further, since text that nobody may see yet gives no other occasion to.

>>> import torch
>>> meter, left = Meter(), threading.Event()
>>> meter.start(left)
>>> meter(None, (torch.tensor([[5, 6, 7]]),))
>>> meter.prompt, meter.passes
(3, 1)
>>> left.set()
>>> meter(None, (torch.tensor([[8]]),))
Traceback (most recent call last):
fedrag.serving.reply.Left
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fedrag.types import Hit


@dataclass(slots=True)
class Reply:
    """An answer on its way: the hits are known, `pieces` yields the text, and can be iterated once.

    `prompt_tokens` and `tokens` count what the model read before its first token and the tokens that it made, an end
    token included; they are `None` for a generator that is no `CausalLM`. `finish` is why the answer ends, as far as
    its generator tells: "length" where it was cut off at as many tokens as it may have. All three are final when
    `pieces` is through. The ensemble reader reads a prompt for every hit, of one length.
    """

    hits: tuple[Hit, ...] = field(repr=False)
    pieces: AsyncIterator[str] = field(init=False, repr=False)
    prompt_tokens: int | None = None
    tokens: int | None = None
    limit: int | None = None
    finish: Literal["stop", "length"] = "stop"
    job: Future[None] = field(init=False, repr=False)
    left: threading.Event = field(default_factory=threading.Event, repr=False)

    def close(self) -> None:
        """Stop writing: nobody reads any further. Closing what is written already changes nothing."""
        self.left.set()
        self.job.cancel()  # if it still waits in line


class Left(Exception):
    """Nobody reads any further."""


class Meter(threading.local):
    """Counts what enters a model in this thread: the tokens of the first pass, and the passes, one for each token.

    It lets no pass begin when nobody reads any further.
    """

    prompt = 0
    passes = 0
    left: threading.Event | None = None

    def start(self, left: threading.Event) -> None:
        """Count from 0, for an answer that nobody reads once `left` is set."""
        self.prompt = self.passes = 0
        self.left = left

    def __call__(self, _module: Any, inputs: tuple[Tensor, ...]) -> None:
        """Count a pass, in which these ids, `[n, t]`, enter the model. Raises `Left` in its place."""
        if self.left is not None and self.left.is_set():
            raise Left
        if not self.passes:
            self.prompt = inputs[0].numel()
        self.passes += 1
