"""FedProx: keep what a site trains near what it was given (Li et al. 2020, arXiv 1812.06127, equation 2).

    def build(site):
        rag = RAGSystem.load("my-rag", store=site.store())
        return RAGTrainer(RALT(rag), train_dataset=site.examples("train"), callbacks=[Proximal(0.1)])

The loss gets the term mu/2 · ‖w - w₀‖², where w₀ is the state that the round began with: sites with unlike data drift
apart less. It is added as its gradient, mu · (w - w₀), before each optimiser step, so it serves every trainer built on
`transformers.Trainer`: ours, TRL's, sentence-transformers'. The logged loss is without the term.

It comes once a step, whatever the gradient accumulation, and after the clipping: `max_grad_norm` bounds the gradient of
the loss alone, and the pull towards w₀ is never cut. At the first step of a round it is zero. Memory: a copy of what is
trained.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fedrag.errors import ConfigError


class Proximal(TrainerCallback):
    """Pull the trained parameters towards where they were when training began.

    Args:
        mu: strength of the pull; 0 for none. The paper tries 0.001 to 1. With plain SGD the step is stable for
            learning rate · mu below 1.

    Raises:
        ConfigError: for a negative or infinite mu; when training begins, for settings under which the gradients are not
            there to be added to.
    """

    def __init__(self, mu: float) -> None:
        if not 0 <= mu < math.inf:
            raise ConfigError(f"mu is a finite number from 0 on, got {mu!r}")
        self.mu = mu
        self._start: list[tuple[nn.Parameter, Tensor]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: Any
    ) -> None:
        """Remember the trained parameters as they are."""
        if args.fp16 and not args.max_grad_norm:
            raise ConfigError(
                "with fp16=True and max_grad_norm=0 the gradients are still multiplied by the loss scale when the "
                "proximal term is added: set max_grad_norm above 0, or bf16=True"
            )
        if args.deepspeed or args.fsdp:
            raise ConfigError(
                "Proximal adds to the gradients of whole parameters, which DeepSpeed and FSDP have in shards: leave it "
                "out, or train with DistributedDataParallel"
            )
        if self.mu:
            self._start = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the gradient of the term."""
        for parameter, start in self._start:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.mu)
            elif not torch.equal(parameter, start):  # not used in this step; what was never used is left alone
                parameter.grad = self.mu * (parameter - start)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let the copy go."""
        self._start = []
