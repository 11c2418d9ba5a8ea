"""A site's answers: what it is asked and nothing else; what fails leaves as a code, and its text stays at the site."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federating import RUN, Walker, asked, hello, participant, read, same
from fedrag.errors import InputError
from fedrag.federated import ExactLoRA, Segment, Site
from fedrag.federated.client import FAULTS, Reply, Request, numbers
from fedrag.federated.exchange import unpack
from fedrag.federated.kept import Kept

SECRET = "the patient in bed 7"


def test_it_tells_trains_and_closes() -> None:
    site = participant()
    told = site.answer(hello())
    assert told.config["site"] == "north"
    assert set(told.config) == {"site", "fingerprint"}
    assert same(unpack(told.state), Walker(site.site).state)
    assert told.metrics["num-examples"] == 3
    torch.manual_seed(3)
    request = asked(participant())  # another one, at the same place: nothing of it is shared
    torch.manual_seed(3)
    trained = participant().answer(request)
    alone = Walker(site.site)
    torch.manual_seed(3)
    alone.train(Segment(0, 3, "north"))
    assert same(unpack(trained.state), alone.state)
    assert set(trained.metrics) == {"num-examples", "eval_distance", "train_loss", "train_seconds"}
    assert trained.metrics["eval_distance"] == 4.0  # of the state that came
    closed = site.answer(Request("close", {**request.config}, trained.state))
    assert closed.state == {}
    assert closed.metrics == {"num-examples": 3.0, "eval_distance": pytest.approx(alone.evaluate()["distance"])}
    assert same(unpack(read(site.site.state / RUN / "final.safetensors")), alone.exchange_state())


def test_without_evaluation_nothing_is_measured() -> None:
    site = participant(evaluate=False)
    assert not [name for name in site.answer(asked(site)).metrics if name.startswith("eval_")]
    assert set(site.answer(asked(site, "close")).metrics) == {"num-examples"}


def test_it_builds_once_a_run() -> None:
    built: list[Walker] = []

    def build(site: Site) -> Walker:
        built.append(Walker(site))
        return built[-1]

    site = participant(build)
    request = asked(site)
    site.answer(request)
    site.answer(hello())
    site.answer(asked(site, "close"))
    assert len(built) == 1
    told = site.answer(hello("fedcba9876543210"))
    assert len(built) == 2
    assert same(unpack(told.state), Walker(Site("north")).state)  # and not what the last run left
    again = participant(build)
    again.answer(request)  # a process of its own, which no hello came to
    again.answer(hello())
    assert len(built) == 3


def failing(member: str) -> Callable[[Site], Any]:
    """A recipe whose trainer fails there, with a text that must not travel."""

    def fail(*_: Any) -> Any:
        raise LookupError(SECRET)

    class Failing(Walker):
        built = False

        def finish(self) -> None: ...

        def fingerprint(self, ignoring: Any = ()) -> str:
            return "f"

        def scales(self) -> dict[str, float]:
            return {}

        def __getattribute__(self, name: str) -> Any:
            if name == member and object.__getattribute__(self, "built"):
                return fail() if name == "num_examples" else fail
            return object.__getattribute__(self, name)

    def build(site: Site) -> Any:
        if member == "build":
            fail()
        made = Failing(site)
        made.built = True
        return made

    return build


KIND_OF = {
    "build": ("hello", "build"),
    "fingerprint": ("hello", "build"),
    "scales": ("hello", "build"),
    "evaluate": ("train", "evaluate"),
    "load_exchange_state": ("train", "state"),
    "train": ("train", "train"),
    "finish": ("close", "close"),
}


@pytest.mark.parametrize("member", [*KIND_OF, "num_examples", "exchange_state"])
def test_whatever_fails_leaves_as_a_code(member: str, caplog: pytest.LogCaptureFixture) -> None:
    site = participant(failing(member))
    with caplog.at_level(logging.ERROR):
        replies = [site.answer(asked(site, kind)) for kind in ("hello", "train", "close")]
    failed = [reply for reply in replies if "fault" in reply.config]
    assert failed
    for reply in failed:
        assert set(reply.config) - {"class"} == {"site", "fault"}
        assert reply.config.get("class", "LookupError") == "LookupError"
        assert reply.config["fault"] in FAULTS
        assert (reply.state, reply.metrics) == ({}, {})
    assert SECRET not in repr(replies)
    assert {record.name for record in caplog.records} == {"fedrag.site"}  # the site's own log, which has it
    assert SECRET in caplog.text
    if member in KIND_OF:
        kind, code = KIND_OF[member]
        assert site.answer(asked(site, kind)).config["fault"] == code


def test_a_full_disk_leaves_as_a_code(tmp_path: Path) -> None:
    (tmp_path / SECRET).write_text("a file where a folder should be")
    site = participant(site=Site("north", state=tmp_path / SECRET), personal=["own/*"])
    for kind in ("train", "close"):
        reply = site.answer(asked(site, kind))
        assert reply.config == {"site": "north", "fault": "state", "class": "FileExistsError"}


def test_interrupts_pass() -> None:
    class Interrupted(Walker):
        def train(self, segment: Segment) -> dict[str, float]:
            raise KeyboardInterrupt

    site = participant(Interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.answer(asked(site))


def test_what_is_not_finite_does_not_leave() -> None:
    class Diverging(Walker):
        def train(self, segment: Segment) -> dict[str, float]:
            self.state["own/head"][0] = torch.nan
            return {}

    for personal in ([], ["own/*"]):
        site = participant(Diverging, personal=personal)
        reply = site.answer(asked(site))
        assert (reply.config["fault"], reply.state) == ("finite", {})
    assert "fault" not in site.answer(asked(site, "close")).config  # nor stay


def test_round_0_is_as_if_nothing_had_come_between() -> None:
    site = participant()
    torch.manual_seed(3)
    request = asked(site)
    random.random(), np.random.rand(), torch.rand(9)
    first = site.answer(request)
    alone = Walker(site.site)
    torch.manual_seed(3)
    alone.train(Segment(0, 3, "north"))
    assert same(unpack(first.state), alone.state)


def test_only_plain_numbers_leave() -> None:
    found = {
        "loss": 1, "eval_f1": np.float32(0.5), "nan": float("nan"), "inf": float("inf"), "text": SECRET, "none": None,
        "tensor": torch.ones(1), "list": [1.0], "a question ?": 1.0, "x" * 80: 1.0, "a\n": 1.0,
    }  # fmt: skip
    assert numbers(found) == {"loss": 1.0, "eval_f1": 0.5}
    assert numbers({"": 1.0, "1st": 1.0}) == {}
    assert numbers(found, "eval_") == {"eval_loss": 1.0, "eval_f1": 0.5}


def test_the_fingerprint_is_of_what_is_exchanged_and_of_the_plan() -> None:
    class Wider(Walker):
        def __init__(self, site: Site) -> None:
            super().__init__(site)
            self.state["own/head"] = torch.zeros(5)

    def told(build: Any, **plan: Any) -> Any:
        return participant(build, **plan).answer(hello()).config["fingerprint"]

    assert told(Walker) == told(Walker)
    assert told(Walker) != told(Wider)
    assert told(Walker, personal=["own/*"]) == told(Wider, personal=["own/*"])
    assert len({told(Walker), told(Walker, seed=1), told(lambda site: Walker(site, dtype=torch.float64))}) == 3


def test_adapters_of_another_scale_have_another_fingerprint_unless_the_strategy_minds_scales() -> None:
    def told(scale: float, **plan: Any) -> Any:
        class Scaled(Walker):
            def scales(self) -> dict[str, float]:
                return {"layer": scale}

        return participant(Scaled, **plan).answer(hello()).config["fingerprint"]

    assert told(1.0) != told(2.0)
    assert told(1.0, strategy=ExactLoRA()) == told(2.0, strategy=ExactLoRA())


def test_a_fault_is_never_a_state() -> None:
    reply = participant(failing("train")).answer(Request("train", {"run": RUN, "round": 0}))
    assert isinstance(reply, Reply)
    assert reply.config["fault"] == "fingerprint"
    with pytest.raises(InputError):
        Kept(Site("north"), "..")
