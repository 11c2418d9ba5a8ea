"""Asking sites over a network: replies come late, twice, from nobody or never; sites come and go; a server refuses."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from federating import Walker, Wire, federate, same, three
from fedrag.errors import QuorumError, TrainingError
from fedrag.federated import Plan, transport
from fedrag.federated.app import client_app
from fedrag.federated.client import Participant
from fedrag.federated.engines.local import LocalGrid, identity
from fedrag.federated.rounds import Rounds


class Network(Grid):
    """Like a SuperLink: nodes come and go, replies are there some time after they were asked for.

    `there` says which of the nodes are there at each look; `lost` takes messages away; `spoil` changes replies.
    """

    def __init__(self, there: Sequence[set[int]], *, lost: Any = lambda _: False, spoil: Any = lambda m: [m]) -> None:
        sites = [Participant(Walker, Plan(rounds=3), site) for site in three()]
        app = client_app(lambda node, request: sites[int(node["place"])].answer(request))
        self.local = LocalGrid(app, [{"place": place} for place in range(3)], run_id=1, serde=True)
        self.there, self.lost, self.spoil = list(there), lost, spoil
        self.asked: list[Message] = []
        self.swallowed: set[str] = set()
        self.looks = 0
        self.refuses = False

    def get_node_ids(self) -> list[int]:
        now = self.there.pop(0) if len(self.there) > 1 else self.there[0]
        return [node + 2 for node in now]

    def push_messages(self, messages: Iterable[Message]) -> list[Any]:
        self.asked += (messages := list(messages))
        return [] if self.refuses else [None if self.lost(m) else self.local.push_messages([m])[0] for m in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        if self.looks % 2:
            return []
        found: list[Message] = []
        for message in self.local.pull_messages(set(message_ids) - self.swallowed):
            found += (replies := self.spoil(message))
            self.swallowed |= set() if replies else {message.metadata.reply_to_message_id}
        return found

    def set_run(self, run: FlowerRun) -> None: ...

    @property
    def run(self) -> FlowerRun:
        return self.local.run

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise AssertionError

    def send_and_receive(self, *_: Any, **__: Any) -> list[Message]:
        raise AssertionError


ALL = {0, 1, 2}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_POLL", 0.001)


def over(network: Network, **plan: Any) -> Any:
    import torch

    torch.manual_seed(0)
    with identity(1):
        return Rounds(network, Plan(**{"rounds": 3, "round_timeout": 20.0, **plan})).run()


def used(run: Any) -> list[str]:
    return ["".join(sorted(round.sites)) for round in run.history.rounds]


def test_a_network_gives_what_one_process_gives() -> None:
    network = Network([ALL])
    run = over(network)
    assert same(run.state, federate(Walker, Plan(rounds=3), three()).run.state)
    assert network.looks > 20
    assert {message.metadata.ttl for message in network.asked} == {20.0}  # what nobody fetched is not trained later


def test_replies_that_come_twice_count_once() -> None:
    run = over(Network([ALL], spoil=lambda reply: [reply, reply]))
    assert used(run) == ["abc"] * 3
    assert same(run.state, federate(Walker, Plan(rounds=3), three()).run.state)


def test_sites_come_and_go() -> None:
    run = over(Network([{1}, {0, 1}, {0, 1, 2}, {1, 2}]))
    assert used(run) == ["b", "ab", "abc"]
    assert set(run.history.closing.sites) == {"b", "c"}


def test_too_few_sites_is_told_when_the_time_is_over() -> None:
    began = time.monotonic()
    with pytest.raises(QuorumError, match=r"1 sites are there after 0\.1 s, the plan's quorum is 2"):
        over(Network([{0, 1}, {0}]), quorum=2, node_timeout=0.1)
    assert 0.1 < time.monotonic() - began < 60


def test_sites_that_cannot_take_part_do_not_end_a_run_that_others_join() -> None:
    def broken(message: Message) -> list[Message]:
        site = message.content["config"]["site"]
        if message.metadata.message_type == "query" and site == "a":
            message.content["config"] = ConfigRecord({"site": site, "fault": "build"})
        return [message]

    network = Network([{0}, {0}, {0}, {0, 1}], spoil=broken)
    assert used(over(network)) == ["b"] * 3
    asked = [m.metadata.dst_node_id for m in network.asked if m.metadata.message_type == "query"]
    assert asked[:2] == [2, 3]  # a is asked again when the next round begins, and not over and over
    assert asked.count(2) <= 4
    began = time.monotonic()
    with pytest.raises(QuorumError, match=r"0 sites can take part, the plan's quorum is 1\. Left out: a: build"):
        over(Network([{0}], spoil=broken), node_timeout=0.3)
    assert 0.3 < time.monotonic() - began < 60


def test_what_most_sites_agree_on_is_settled_when_they_are_enough() -> None:
    def odd(message: Message) -> list[Message]:
        config = message.content["config"]
        if message.metadata.message_type == "query" and config["site"] == "a":
            message.content["config"] = ConfigRecord({**config, "fingerprint": "odd"})
        return [message]

    run = over(Network([{0, 1}, {0, 1}, ALL], spoil=odd), quorum=2)  # of two, the first by name would be right
    assert used(run) == ["bc"] * 3


def test_a_silent_site_is_waited_for_until_the_time_is_over() -> None:
    def drop(message: Message) -> list[Message]:
        lost = message.metadata.message_type == "train" and message.content["config"]["site"] == "b"
        return [] if lost else [message]

    began = time.monotonic()
    run = over(Network([ALL], spoil=drop), rounds=1, round_timeout=2.0)
    assert used(run) == ["ac"]
    assert run.history.rounds[0].silent == ("b",)
    assert 2.0 < time.monotonic() - began < 60


@pytest.mark.parametrize("code", [ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE])
def test_a_dead_site_is_known_by_the_message_it_did_not_answer(code: int) -> None:
    """The server answers for it, under its own id and with a text that may be anybody's.

    Of a message that nobody answered in time it says that it has it no more: that site is silent.
    """

    def die(message: Message) -> list[Message]:
        if message.metadata.message_type != "train" or message.content["config"]["site"] != "b":
            return [message]
        metadata = message.metadata
        metadata.__dict__["_src_node_id"] = 1
        return [Message(error=Error(code, "secret words"), metadata=metadata)]  # type: ignore[call-arg]

    run = over(Network([ALL], spoil=die))
    expired = code == ErrorCode.MESSAGE_UNAVAILABLE
    rejected = {} if expired else {"b": "no reply (Flower's error 5)"}
    assert [(one.rejected, one.silent) for one in run.history.rounds] == [(rejected, ("b",) if expired else ())] * 3


def test_a_node_that_goes_before_it_is_asked_is_left_out() -> None:
    def gone(message: Message) -> bool:
        return message.metadata.message_type == "train" and message.metadata.dst_node_id == 2

    run = over(Network([ALL], lost=gone))
    assert used(run) == ["bc"] * 3
    assert run.history.rounds[0].rejected == {"a": "the server took no message for it: its node has gone"}


def test_a_server_that_takes_no_message_is_told() -> None:
    network = Network([ALL])
    network.refuses = True
    with pytest.raises(TrainingError, match="none of 3 messages was taken: the server, or a proxy before it"):
        over(network)


def drawn(fraction: float, rounds: int = 6, **plan: Any) -> list[str]:
    outcome = federate(Walker, Plan(rounds=rounds, fraction=fraction, **plan), three())
    assert all(not round.silent and not round.rejected for round in outcome.rounds)
    assert set(outcome.closing.sites) == {"a", "b", "c"}  # all get the final state
    return ["".join(sorted(round.sites)) for round in outcome.rounds]


def test_a_share_of_the_sites_is_drawn_from_the_plans_seed() -> None:
    once = drawn(0.6)
    assert {len(names) for names in once} == {2}
    assert len(set(once)) > 1
    assert drawn(0.6) == once
    assert drawn(0.6, seed=1) != once
    assert {len(names) for names in drawn(0.01)} == {1}
    assert {len(names) for names in drawn(0.01, quorum=2)} == {2}
    assert {len(names) for names in drawn(1 / 3)} == {1}


def test_a_grid_of_this_process_loses_messages_at_once() -> None:
    began = time.monotonic()
    outcome = federate(Walker, Plan(rounds=1), three(), silence=lambda m: m.metadata.message_type == "evaluate")
    assert outcome.closing.silent == ("a", "b", "c")
    assert time.monotonic() - began < 60
    assert isinstance(outcome.grid, Wire)
