"""What the tests of federation share: a tiny thing to train, sites, and a run over messages that are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from torch import Tensor

from fedrag.federated import Plan, Segment, Site
from fedrag.federated import checkpoint as checkpoints
from fedrag.federated.app import client_app
from fedrag.federated.checkpoint import Run
from fedrag.federated.client import Participant, Reply, Request
from fedrag.federated.engines.local import LocalGrid, identity
from fedrag.federated.exchange import Packed, from_bytes
from fedrag.federated.history import Round
from fedrag.federated.rounds import Rounds
from fedrag.federated.schedule import seed_of

RUN = "0123456789abcdef"


class Walker:
    """Walks towards its site's target with momentum and a little noise: five members, and state of every kind.

    `w` and `b` are exchanged; `own/head` may be personal. The noise comes from torch's random numbers.
    """

    def __init__(self, site: Site, *, dtype: torch.dtype = torch.float32) -> None:
        self.target = float(site.settings.get("target", 4.0))
        self.num_examples = int(site.settings.get("rows", 3))
        self.state = {"w": torch.zeros(3), "b": torch.full((1,), 0.1), "own/head": torch.zeros(2)}
        self.state = {name: value.to(dtype) for name, value in self.state.items()}
        self.seen: list[tuple[int, list[float]]] = []  # what every round began with

    def exchange_state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.state.items()}

    def load_exchange_state(self, state: Mapping[str, Tensor]) -> None:
        assert list(state) == list(self.state)
        assert all(state[name].shape == value.shape for name, value in self.state.items())
        self.state = {name: state[name].to(value.dtype) for name, value in self.state.items()}

    def train(self, segment: Segment) -> dict[str, float]:
        self.seen.append((segment.round, self.state["w"].tolist()))
        if segment.round:
            torch.manual_seed(seed_of(segment, 0))
        momentum = {name: torch.zeros(value.shape) for name, value in self.state.items()}
        kept = _kept(segment)
        if before := [number for number in kept if number < segment.round]:
            momentum = kept[max(before)]
        for name, value in self.state.items():
            momentum[name] = 0.9 * momentum[name] + self.target - value.float() + 0.1 * torch.randn(value.shape)
            self.state[name] = (value + 0.25 * momentum[name]).to(value.dtype)
        if segment.optimizer:
            torch.save({**kept, segment.round: momentum}, segment.optimizer)
        return {"loss": self.evaluate()["distance"]}

    def evaluate(self) -> dict[str, float]:
        return {"distance": float((self.target - self.state["w"].float()).abs().mean())}


def _kept(segment: Segment) -> dict[int, dict[str, Tensor]]:
    return torch.load(segment.optimizer) if segment.optimizer and segment.optimizer.exists() else {}


def three(folder: Path | None = None) -> list[Site]:
    """Sites of unequal size; with a folder, what they keep outlives the process."""
    places = {"a": (1.0, 5), "b": (2.0, 3), "c": (9.0, 1)}
    return [
        Site(name, settings={"target": target, "rows": rows}, state=folder and folder / name)
        for name, (target, rows) in places.items()
    ]


class Wire(LocalGrid):
    """All messages through Flower's serialisation; every one is kept to be looked at."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, serde=True, **settings)
        self.down: list[Message] = []
        self.up: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.down += (messages := list(messages))
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.up += (replies := super().pull_messages(message_ids))
        return replies


class Backwards(Wire):
    """Carries messages out in the opposite order."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return super().push_messages(list(messages)[::-1])[::-1]


Tamper = Callable[[Request, Reply], Reply]


@dataclass
class Outcome:
    run: Run
    grid: Wire

    def wire(self) -> bytes:
        """All that went over the wire, both ways, as it went."""
        messages = [*self.grid.down, *self.grid.up]
        return b"\n".join(part.deflate() for message in messages for part in get_all_nested_objects(message).values())

    @property
    def rounds(self) -> list[Round]:
        return self.run.history.rounds

    @property
    def closing(self) -> Round:
        assert self.run.history.closing is not None
        return self.run.history.closing


def federate(
    build: Callable[[Site], Any],
    plan: Plan,
    sites: Sequence[Site],
    *,
    tamper: Mapping[str, Tamper] | None = None,
    grid: type[Wire] = Wire,
    silence: Callable[[Message], bool] | None = None,
    on_round: Callable[[Round], None] = lambda _: None,
    resume: bool = False,
) -> Outcome:
    """Run a plan from fixed random numbers; `tamper` puts something else in place of a site's replies."""
    torch.manual_seed(0)
    participants = {place: Participant(build, plan, site) for place, site in enumerate(sites)}

    def answer(node: Mapping[str, Any], request: Request) -> Reply:
        site = participants[int(node["place"])]
        reply = site.answer(request)
        return tamper[site.site.name](request, reply) if tamper and site.site.name in tamper else reply

    with identity(1):
        wire = grid(client_app(answer), [{"place": place} for place in participants], run_id=1, silence=silence)
        before = checkpoints.load(Path(plan.checkpoint), plan) if resume and plan.checkpoint else None
        return Outcome(Rounds(wire, plan, on_round).run(before), wire)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Names, order, dtypes and every bit."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def training(request: Request) -> bool:
    return request.kind == "train"


def of_round(number: int, change: Callable[[Reply], Reply]) -> Tamper:
    """Tamper with the reply of one round's training alone."""
    return lambda request, reply: change(reply) if training(request) and request.config["round"] == number else reply


def hello(run: str = RUN) -> Request:
    return Request("hello", {"run": run})


def asked(site: Participant, kind: str = "train", *, run: str = RUN, **config: Any) -> Request:
    """A request with the state that the site told of itself."""
    told = site.answer(hello(run))
    words = {"run": run, "fingerprint": told.config.get("fingerprint", "f"), "round": 0, **config}
    return Request(kind, words, told.state)


def participant(build: Callable[[Site], Any] = Walker, site: Site | None = None, **plan: Any) -> Participant:
    return Participant(build, Plan(**{"rounds": 3, **plan}), site or Site("north"))


def read(path: Path) -> dict[str, Packed]:
    return from_bytes(path.read_bytes())[0]
