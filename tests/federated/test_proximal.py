"""FedProx as a callback: the same steps as with the term in the loss, in every kind of trainer."""

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer

from fedrag.errors import ConfigError
from fedrag.federated.proximal import Proximal
from recipes import RECIPES
from systems import arguments


class Line(nn.Module):
    """y = w·x + b by least squares, and a parameter that no step uses."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x, y):
        return {"loss": (self.line(x).squeeze(-1) - y).square().mean()}


def rows(n=24):
    draw = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(3, generator=draw), "y": 5 * torch.randn((), generator=draw)} for _ in range(n)]


def line(folder, model, mu, **settings):
    given = {"optim": "sgd", "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
    args = arguments(folder, **{**given, "max_steps": -1, "num_train_epochs": 2, **settings})
    return Trainer(model=model, args=args, train_dataset=rows(), callbacks=[Proximal(mu)])


def by_hand(model, mu, *, rate, batch, accumulate, clip=0.0):
    """Plain SGD over the rows, twice, with the pull added after the clipping."""
    parameters = [model.line.weight, model.line.bias]
    start = [p.detach().clone() for p in parameters]
    data = rows()
    for _ in range(2):
        for first in range(0, len(data), batch * accumulate):
            gradients = [torch.zeros_like(p) for p in parameters]
            for at in range(first, first + batch * accumulate, batch):
                x, y = (torch.stack([row[key] for row in data[at : at + batch]]) for key in "xy")
                loss = model(x, y)["loss"] / accumulate
                for total, gradient in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                    total += gradient
            norm = torch.sqrt(sum(g.square().sum() for g in gradients))
            shrink = min(1.0, clip / norm.item()) if clip else 1.0
            with torch.no_grad():
                for p, w, g in zip(parameters, start, gradients, strict=True):
                    p -= rate * (shrink * g + mu * (p - w))


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (2, 0.0), (1, 2.0), (3, 2.0)])
def test_it_equals_sgd_by_hand(tmp_path, mu, accumulate, clip):
    model = Line()
    oracle, before = copy.deepcopy(model), copy.deepcopy(model)
    settings = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip, "learning_rate": 0.1}
    line(tmp_path, model, mu, per_device_train_batch_size=2, **settings).train()
    by_hand(oracle, mu, rate=0.1, batch=2, accumulate=accumulate, clip=clip)
    torch.testing.assert_close(dict(model.named_parameters()), dict(oracle.named_parameters()))
    assert not torch.allclose(model.line.weight, before.line.weight, atol=1e-3)


def trained(trainer):
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("kind", ["contrastive", "sft", "sentence"])
def test_every_trainer_steps_as_with_the_term_in_its_loss(tmp_path, kind):
    settings = {"sequential": True, "optim": "sgd", "learning_rate": 0.1, "max_steps": 4, "warmup_steps": 0}
    pulled, oracle, free = (RECIPES[kind](tmp_path / name, **settings) for name in ("one", "other", "third"))
    pulled.add_callback(Proximal(2.0))
    plain_loss, start = oracle.compute_loss, {}

    def with_term(model, *args, **kwargs):
        moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        start.update({name: p.detach().clone() for name, p in moving.items() if name not in start})
        loss = plain_loss(model, *args, **kwargs)
        return loss + 2.0 / 2 * sum((p - start[name]).square().sum() for name, p in moving.items())

    oracle.compute_loss = with_term
    found, wanted, without = trained(pulled), trained(oracle), trained(free)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    assert start
    assert max((found[name] - without[name]).abs().max() for name in start) > 1e-4  # the term matters here
    moved = [sum((state[name] - start[name]).square().sum() for name in start) for state in (found, without)]
    assert moved[0] < moved[1]


def test_each_run_starts_from_where_it_starts(tmp_path):
    model = Line()
    trainer = line(tmp_path, model, 0.9, learning_rate=1.0, max_grad_norm=1e-9)  # nothing but the pull
    with torch.no_grad():
        model.line.weight.fill_(1.0)
    trainer.train()
    with torch.no_grad():
        model.line.weight.fill_(-4.0)  # another state came
    trainer.train()
    torch.testing.assert_close(model.line.weight, torch.full((1, 3), -4.0), atol=1e-3, rtol=0)


def test_a_parameter_that_one_step_does_not_use_is_pulled_and_one_never_used_is_left(tmp_path):
    model, callback = Line(), Proximal(0.5)
    args = arguments(tmp_path)
    callback.on_train_begin(args, None, None, model=model)
    with torch.no_grad():
        model.line.weight += 2.0
    callback.on_pre_optimizer_step(args, None, None)
    torch.testing.assert_close(model.line.weight.grad, torch.ones(1, 3))
    assert model.line.bias.grad is model.idle.grad is model.frozen.grad is None
    callback.on_train_end(args, None, None)
    callback.on_pre_optimizer_step(args, None, None)  # of a run without a beginning: nothing is kept
    torch.testing.assert_close(model.line.weight.grad, torch.ones(1, 3))


def test_impossible_settings_are_refused(tmp_path):
    for mu in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="mu is a finite number from 0 on"):
            Proximal(mu)
    args = arguments(tmp_path, max_grad_norm=0.0)
    args.fp16 = True  # without a GPU the constructor refuses it
    with pytest.raises(ConfigError, match="max_grad_norm above 0"):
        Proximal(1.0).on_train_begin(args, None, None, model=Line())
    args = arguments(tmp_path)
    args.deepspeed = "settings.json"
    with pytest.raises(ConfigError, match="DeepSpeed and FSDP"):
        Proximal(1.0).on_train_begin(args, None, None, model=Line())
