"""Whatever one site does, the others go on; and a run that cannot go on says who was missing, in time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.serverapp.strategy import FedMedian, Krum

from federating import Outcome, Walker, federate, of_round, same, three
from fedrag.errors import ConfigError, InputError, QuorumError
from fedrag.federated import Averaging, Plan, Segment, Site
from fedrag.federated.client import Reply, Request
from fedrag.federated.exchange import Packed, pack, unpack
from fedrag.federated.strategies.strategy import Member
from fedrag.federated.trainable import State

SECRET = "bed-7-is-Mrs-Miller"


class Failing(Walker):
    """Fails at site b in round 1, with a text that must not travel."""

    def train(self, segment: Segment) -> dict[str, float]:
        if (segment.site, segment.round) == ("b", 1):
            raise LookupError(SECRET)
        return super().train(segment)


def used(outcome: Outcome) -> list[str]:
    return ["".join(sorted(round.sites)) for round in outcome.rounds]


def everything(outcome: Outcome) -> str:
    return f"{outcome.run.history.to_json()} {outcome.wire()!r}"


class Elsewhere(Walker):
    """Begins with numbers of its own, as a model that is not seeded does."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.state = {name: value + self.target for name, value in self.state.items()}


def test_all_sites_begin_where_the_first_one_does() -> None:
    made: list[Elsewhere] = []

    def build(site: Site) -> Elsewhere:
        made.append(Elsewhere(site))
        return made[-1]

    federate(build, Plan(rounds=1, quorum=3), three()[::-1])
    assert [walker.target for walker in made] == [9.0, 2.0, 1.0]  # site a is met last
    assert [walker.seen for walker in made] == [[(0, [1.0, 1.0, 1.0])]] * 3


def test_a_site_that_fails_is_left_out_once_and_its_words_stay_there(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        outcome = federate(Failing, Plan(rounds=3, quorum=2), three())
    assert used(outcome) == ["abc", "ac", "abc"]
    assert outcome.rounds[1].rejected == {"b": "training failed (LookupError)"}
    assert SECRET not in everything(outcome)
    assert "LookupError" in everything(outcome)  # which does get there
    told = [record for record in caplog.records if record.name.startswith("fedrag.federated")]
    assert any("site b is left out" in record.getMessage() for record in told)
    assert SECRET not in "".join(logging.Formatter().format(record) for record in told)
    assert SECRET in caplog.text  # the site's own log has it
    with pytest.raises(QuorumError) as caught:
        federate(Failing, Plan(rounds=3, quorum=3), three())
    assert SECRET not in str(caught.value)
    assert "round 1: 2 usable replies, the plan's quorum is 3; left out: {'b': 'training failed" in str(caught.value)


def test_a_reply_that_is_left_out_has_no_effect_at_all() -> None:
    plan = Plan(rounds=1, quorum=2)
    without = federate(Walker, plan, [site for site in three() if site.name != "b"])
    for spoiled in (math.nan, math.inf, -math.inf):
        tamper = {"b": of_round(0, lambda reply, s=spoiled: holding(reply, {"w": [0.0, s, 1.0]}))}
        tampered = federate(Walker, plan, three(), tamper=tamper)
        assert set(tampered.rounds[0].rejected) == {"b"}
        assert same(tampered.run.state, without.run.state)
    assert not same(federate(Walker, plan, three()).run.state, without.run.state)


def holding(reply: Reply, values: dict[str, Any]) -> Reply:
    state = unpack(reply.state) | {name: torch.tensor(value) for name, value in values.items()}
    return replace(reply, state=pack(state))


def metrics(**numbers: Any) -> Callable[[Reply], Reply]:
    names = {name.replace("_", "-") if name == "num_examples" else name: value for name, value in numbers.items()}
    return lambda reply: replace(reply, metrics={**reply.metrics, **names})


LIES: dict[str, tuple[Callable[[Reply], Reply], str]] = {
    "nan": (lambda reply: holding(reply, {"b": [math.nan]}), "not finite"),
    "names": (lambda reply: replace(reply, state={"x": reply.state["w"]}), "parameter names differ"),
    "order": (lambda reply: replace(reply, state=dict(reversed(list(reply.state.items())))), "another order"),
    "shape": (lambda reply: holding(reply, {"w": [1.0]}), "'w' is (1,)"),
    "dtype": (lambda reply: holding(reply, {"w": torch.ones(3).half().numpy()}), "float16"),
    "bytes": (lambda reply: replace(reply, state={"w": Packed("bfloat16", (99,), b"xx")}), "cannot be read"),
    "nothing": (lambda reply: Reply({}), "answers under another name"),
    "another site": (lambda reply: replace(reply, config={**reply.config, "site": "a"}), "answers under another name"),
    "no examples": (metrics(num_examples=0.0), "number of examples is 0"),
    "less than none": (metrics(num_examples=-5.0), "number of examples is -5"),
    "nan examples": (metrics(num_examples=math.nan), "number of examples is nan"),
    "all examples": (metrics(num_examples=1e300), "number of examples is 1e+300"),
    "an unknown fault": (lambda reply: Reply({"site": "b", "fault": SECRET, "class": SECRET}), "nobody knows"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_site_that_lies_is_left_out_and_comes_back(name: str) -> None:
    lie, why = LIES[name]
    outcome = federate(Walker, Plan(rounds=3, quorum=2), three(), tamper={"b": of_round(1, lie)})
    assert used(outcome) == ["abc", "ac", "abc"]
    assert why in outcome.rounds[1].rejected["b"]
    assert SECRET not in outcome.rounds[1].rejected["b"]
    assert outcome.closing.rejected == {}


def test_numbers_that_are_no_numbers_do_not_reach_the_history() -> None:
    lie = metrics(train_loss=math.nan, other=math.inf, **{"a name with words": 1.0, "x" * 99: 1.0})
    outcome = federate(Walker, Plan(rounds=1), three(), tamper={"b": of_round(0, lie)})
    round = outcome.rounds[0]
    assert set(round.sites) == {"a", "b", "c"}
    assert set(round.metrics) == {"eval_distance", "train_loss", "train_seconds"}
    assert all(math.isfinite(value) for value in round.metrics.values())


def test_words_that_nobody_asked_for() -> None:
    notes: Any = [1, 2, 3]
    extra = of_round(0, lambda reply: replace(reply, config={**reply.config, "notes": notes}))
    outcome = federate(Walker, Plan(rounds=1, quorum=2), three(), tamper={"b": extra})
    assert outcome.rounds[0].rejected == {
        "b": "a reply that cannot be read: the word 'notes' of a message is no scalar"
    }


def train_of(site: int, *rounds: int) -> Callable[[Message], bool]:
    """Messages to this node in these rounds are lost."""
    return lambda message: (
        message.metadata.message_type == "train"
        and message.metadata.dst_node_id == site + 2
        and message.content["config"]["round"] in rounds
    )


def test_a_silent_site_is_told_as_silent_and_comes_back() -> None:
    outcome = federate(Walker, Plan(rounds=3, quorum=2), three(), silence=train_of(0, 1))
    assert used(outcome) == ["abc", "bc", "abc"]
    assert [round.silent for round in outcome.rounds] == [(), ("a",), ()]
    began = time.monotonic()
    with pytest.raises(QuorumError, match="silent: a"):
        federate(Walker, Plan(rounds=3, quorum=3, round_timeout=600), three(), silence=train_of(0, 1))
    assert time.monotonic() - began < 60


def test_a_slow_site_is_left_out() -> None:
    class Slow(Walker):
        def train(self, segment: Segment) -> dict[str, float]:
            if segment.site == "c" and segment.round == 0:
                time.sleep(1.5)
            return super().train(segment)

    outcome = federate(Slow, Plan(rounds=2, quorum=2, round_timeout=1.0), three())
    assert used(outcome) == ["ab", "abc"]
    assert outcome.rounds[0].rejected == {"c": "it took more than 1 s"}


def five() -> list[Site]:
    return [Site(name, settings={"target": 2.0 + place / 10}) for place, name in enumerate("abcde")]


def times_50(reply: Reply) -> Reply:
    return replace(reply, state=pack({name: value * -50 for name, value in unpack(reply.state).items()}))


@pytest.mark.parametrize(
    ("settings", "rejected"),
    [
        ({"max_norm": 20.0}, {"e"}),
        ({"strategy": Krum(num_malicious_nodes=1)}, set()),
        ({"strategy": FedMedian()}, set()),
    ],
    ids=["max_norm", "Krum", "median"],
)
def test_one_site_cannot_drag_the_others_away(settings: dict[str, Any], rejected: set[str]) -> None:
    tamper = {"e": lambda request, reply: times_50(reply) if request.kind == "train" else reply}
    honest = federate(Walker, Plan(rounds=6, quorum=4), five())
    dragged = federate(Walker, Plan(rounds=6, quorum=4), five(), tamper=tamper)
    assert honest.closing.metrics["eval_distance"] < 0.6
    assert dragged.closing.metrics["eval_distance"] > 3
    defended = federate(Walker, Plan(rounds=6, quorum=4, **settings), five(), tamper=tamper)
    assert defended.closing.metrics["eval_distance"] < 0.6
    assert [set(round.rejected) for round in defended.rounds] == [rejected] * 6


def test_too_few_sites_is_told_within_the_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(QuorumError, match=r"3 sites are there after 0\.2 s, the plan's quorum is 4"):
        federate(Walker, Plan(rounds=1, quorum=4, node_timeout=0.2), three())
    assert time.monotonic() - began < 60


def test_two_sites_of_one_name() -> None:
    sites = [*three(), Site("a", settings={"target": 50.0})]
    outcome = federate(Walker, Plan(rounds=2, quorum=3), sites)
    assert same(outcome.run.state, federate(Walker, Plan(rounds=2), three()).run.state)
    with pytest.raises(QuorumError, match=r"3 sites can take part, the plan's quorum is 4\. Left out: a: another site"):
        federate(Walker, Plan(rounds=2, quorum=4), sites)


def test_a_site_of_another_model_is_named() -> None:
    def build(site: Site) -> Walker:
        return Walker(site, dtype=torch.float64 if site.name == "a" else torch.float32)

    outcome = federate(build, Plan(rounds=2, quorum=2), three())
    assert used(outcome) == ["bc", "bc"]
    with pytest.raises(QuorumError, match="Left out: a: its base model, parameter names, adapters or plan are not"):
        federate(build, Plan(rounds=2, quorum=3), three())


class Choosy(Averaging):
    """Has no state for one site, as a strategy has that cuts states to ranks."""

    error: type[Exception] = InputError

    def outgoing(self, state: State, member: Member) -> State:
        if member.site == "b":
            raise self.error("it has no scale")
        return state


def test_a_site_that_cannot_be_given_its_state_is_left_out() -> None:
    outcome = federate(Walker, Plan(rounds=2, quorum=2, strategy=Choosy()), three())
    assert used(outcome) == ["ac", "ac"]
    assert [round.rejected for round in [*outcome.rounds, outcome.closing]] == [{"b": "it has no scale"}] * 3
    strategy = Choosy()
    strategy.error = ConfigError
    with pytest.raises(ConfigError, match="it has no scale"):  # of the plan, and not of the site
        federate(Walker, Plan(rounds=2, strategy=strategy), three())


def test_a_fault_at_the_end_loses_nothing() -> None:
    class Ending(Walker):
        def finish(self) -> None:
            if self.target == 2.0:
                raise LookupError(SECRET)

    outcome = federate(Ending, Plan(rounds=2, quorum=3), three())
    assert outcome.closing.rejected == {"b": "taking over the final state failed (LookupError)"}
    assert set(outcome.closing.sites) == {"a", "c"}
    assert same(outcome.run.state, federate(Walker, Plan(rounds=2), three()).run.state)
    assert SECRET not in everything(outcome)
    lied = federate(Walker, Plan(rounds=1), three(), tamper={"b": closing(metrics(num_examples=math.nan, eval_x=1.0))})
    assert lied.closing.rejected == {"b": "its number of examples is nan"}
    assert "eval_x" not in lied.closing.metrics


def closing(change: Callable[[Reply], Reply]) -> Callable[[Request, Reply], Reply]:
    return lambda request, reply: change(reply) if request.kind == "close" else reply
