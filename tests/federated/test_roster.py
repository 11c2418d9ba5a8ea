"""Who takes part: what most sites agree on, by name; and everybody else is told why not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from federating import same
from fedrag.federated import Plan
from fedrag.federated.checkpoint import Run
from fedrag.federated.client import Reply
from fedrag.federated.exchange import pack
from fedrag.federated.history import History
from fedrag.federated.roster import Roster


def hello(site: str, fingerprint: str = "f", state: Mapping[str, Tensor] | None = None, **config: Any) -> Reply:
    state = {"w": torch.full((2,), float(ord(site[0])))} if state is None else state
    return Reply({"site": site, "fingerprint": fingerprint, **config}, {}, pack(state))


def met(*replies: Reply | str, ranks: bool = False, **plan: Any) -> tuple[Roster, Run]:
    roster, run = Roster(Plan(rounds=1, **plan), ranks=ranks), Run("0123456789abcdef", "", {}, {}, History())
    roster.begin(run, dict(enumerate(replies, start=10)))
    return roster, run


def sites(roster: Roster) -> list[str]:
    return [roster.members[node].site for node in roster.by_name()]


def test_the_first_by_name_gives_the_state_in_whatever_order_they_come() -> None:
    for order in itertools.permutations(["c", "a", "b"]):
        roster, run = met(*map(hello, order))
        assert sites(roster) == ["a", "b", "c"]
        assert run.fingerprint == "f"
        assert same(run.state, {"w": torch.full((2,), 97.0)})


def test_the_majority_is_right_and_the_odd_one_is_told() -> None:
    for order in itertools.permutations([hello("a", "odd"), hello("b"), hello("c")]):
        roster, run = met(*order)
        assert sites(roster) == ["b", "c"]
        assert same(run.state, {"w": torch.full((2,), 98.0)})
        assert roster.absent == {
            "a": "its base model, parameter names, adapters or plan are not those of the other sites"
        }
    roster, run = met(hello("b", "g"), hello("a", "f"))
    assert (run.fingerprint, sites(roster)) == ("f", ["a"])  # of equally many, the first by name


def test_a_name_counts_once() -> None:
    roster, run = met(hello("b", "odd"), hello("b", "odd"), hello("a"), hello("c"))
    assert (run.fingerprint, sites(roster)) == ("f", ["a", "c"])
    roster, _ = met(hello("a"), hello("b"), hello("a"))
    assert sites(roster) == ["a", "b"]
    assert roster.absent == {"a": "another site has this name"}
    assert set(roster.members) == {10, 11}


BAD = {
    "a fault": (Reply({"site": "x", "fault": "build", "class": "OSError"}), "build(site) failed (OSError)"),
    "a fault of its own": (Reply({"site": "x", "fault": "secret words"}), "gave a code that nobody knows"),
    "a class with words": (Reply({"site": "x", "fault": "train", "class": "a b"}), "training failed"),
    "no reply": ("no reply (Flower's error 3)", "no reply (Flower's error 3)"),
    "no fingerprint": (Reply({"site": "x"}, {}, hello("x").state), "has no name, no fingerprint or no state"),
    "no state": (hello("x", state={}), "has no name, no fingerprint or no state"),
    "not finite": (hello("x", state={"w": torch.tensor([1.0, torch.nan])}), "'w' holds numbers that are not finite"),
    "scales": (hello("x", scales="[1]"), "scales of LoRA pairs cannot be read"),
    "scales of text": (hello("x", scales='{"a": "b"}'), "scales of LoRA pairs cannot be read"),
    "shape": (hello("x", state={"w": torch.zeros(3)}), "'w' is (3,) there and (2,) elsewhere"),
    "names": (hello("x", state={"v": torch.zeros(2)}), "its parameter names differ: 'v'"),
    "more": (hello("x", state={"w": torch.zeros(2), "x" * 900: torch.zeros(1)}), "its parameter names differ: 'xxx"),
}


@pytest.mark.parametrize("name", BAD)
def test_who_cannot_take_part_is_told_why(name: str) -> None:
    reply, why = BAD[name]
    for late in (False, True):
        roster, run = met(hello("a"), *([] if late else [reply]))
        if late:
            roster.admit(run, {99: reply})
        assert sites(roster) == ["a"]
        assert [told for told in roster.absent.values() if why in told and len(told) < 200]
        assert same(run.state, {"w": torch.full((2,), 97.0)})
    assert not met(reply)[0].members or name in ("shape", "names", "more")


def test_the_order_of_parameters_counts() -> None:
    one = {"w": torch.zeros(1), "b": torch.zeros(1)}
    roster, _ = met(hello("a", state=one), hello("b", state=dict(reversed(one.items()))))
    assert roster.absent == {"b": "its parameters come in another order"}


@pytest.mark.parametrize("name", ["", "../a", "a b", "a" * 65, 3, True])
def test_a_name_that_is_none(name: Any) -> None:
    roster, _ = met(hello("b"), Reply({"site": name, "fingerprint": "f"}, {}, hello("b").state))
    assert sites(roster) == ["b"]
    assert roster.absent == {"node 11": "its hello has no name, no fingerprint or no state"}


def test_members_come_and_go() -> None:
    roster, run = met(hello("a"), hello("b"), "no reply (Flower's error 3)")
    assert roster.online([10, 12, 13]) == [12, 13]  # b's node has gone; who was left out is asked again
    assert sites(roster) == ["a"]
    roster.admit(run, {12: hello("c"), 13: hello("b")})
    assert sites(roster) == ["a", "b", "c"]
    assert roster.absent == {"node 12": "no reply (Flower's error 3)"}
    assert roster.online([10, 12, 13]) == []


def test_ranks_may_differ_where_the_strategy_says_so() -> None:
    small = {"q.lora_A.weight": torch.zeros(2, 4), "norm": torch.zeros(1)}
    large = {"q.lora_A.weight": torch.ones(8, 4), "norm": torch.zeros(1)}
    replies = hello("a", state=small, scales='{"q": 2.0}'), hello("b", state=large), hello("c", state=large)
    roster, run = met(*replies, ranks=True)
    assert sites(roster) == ["a", "b", "c"]
    assert same(run.state, large)
    assert roster.members[10].shapes["q.lora_A.weight"] == (2, 4)
    assert (roster.members[10].scales, roster.members[11].scales) == ({"q": 2.0}, {})
    roster, run = met(*replies)
    assert (sites(roster), list(roster.absent)) == (["a"], ["b", "c"])
    odd = hello("d", state={**small, "norm": torch.zeros(2)})
    assert list(met(*replies, odd, ranks=True)[0].absent) == ["d"]


def test_the_server_keeps_more_bits_than_it_sends() -> None:
    state = {name: torch.ones(1).to(dtype) for name, dtype in (("b", torch.bfloat16), ("h", torch.float16))}
    assert same(met(hello("a", state=state))[1].state, state)
    kept = met(hello("a", state=state), precision="bfloat16")[1].state
    assert {name: value.dtype for name, value in kept.items()} == {"b": torch.float32, "h": torch.float16}


WORD = st.one_of(
    st.text(min_size=1, max_size=8), st.integers(), st.floats(), st.booleans(), st.sampled_from(["f", "a"])
)


@given(st.dictionaries(st.sampled_from(["site", "fingerprint", "scales", "fault", "class"]), WORD))
def test_any_hello_is_taken_or_left_out(config: dict[str, Any]) -> None:
    roster, run = met(hello("a"), hello("b"), Reply(config, {}, hello("x").state))
    assert {"a", "b"} <= set(sites(roster))
    assert run.fingerprint == "f"
    if len(roster.members) == 3:
        assert config["fingerprint"] == "f"
        assert config["site"] in roster.members[12].site
    else:
        assert len(roster.absent) == 1 or config["site"] in ("a", "b")
