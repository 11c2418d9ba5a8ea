"""What comes from a site is used only when it is what was asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from federating import same
from fedrag.errors import InputError
from fedrag.federated import Plan
from fedrag.federated.client import Reply
from fedrag.federated.exchange import Packed, pack
from fedrag.federated.history import SiteRound, averaged
from fedrag.federated.screening import distance, measured, screened
from fedrag.federated.strategies.strategy import Member

MEMBER = Member("north", {"w": (3,), "b": (1,)}, {})
BEFORE = {"w": torch.zeros(3), "b": torch.ones(1).to(torch.bfloat16)}
AFTER = {"w": torch.tensor([0.0, 3.0, 0.0]), "b": torch.full((1,), 5.0).to(torch.bfloat16)}


def reply(state: Mapping[str, Tensor] = AFTER, metrics: Mapping[str, Any] | None = None, **config: Any) -> Reply:
    numbers = {"num-examples": 7, "train_loss": 0.5} if metrics is None else metrics
    return Reply({"site": "north", **config}, numbers, pack(state))


def test_a_sound_reply_is_an_update() -> None:
    update = screened(reply(), MEMBER, pack(BEFORE), Plan(rounds=1))
    assert same(update.state, AFTER)
    assert (update.member, update.weight, update.metrics) == (MEMBER, 7.0, {"num-examples": 7.0, "train_loss": 0.5})
    assert screened(reply(), MEMBER, pack(BEFORE), Plan(rounds=1, weighting="uniform")).weight == 1.0


WRONG = {
    "a fault": (reply(fault="train", **{"class": "MemoryError"}), "training failed (MemoryError)"),
    "another name": (reply(site="south"), "under another name"),
    "a name more": (reply({**AFTER, "c": torch.zeros(1)}), "parameter names differ: 'c'"),
    "a name less": (reply({"w": AFTER["w"]}), "parameter names differ: 'b'"),
    "no state": (reply({}), "parameter names differ"),
    "another order": (reply(dict(reversed(AFTER.items()))), "another order"),
    "a shape": (reply({**AFTER, "w": torch.zeros(3, 1)}), "'w' is (3, 1) of float32, not (3,) of float32"),
    "a dtype": (reply({**AFTER, "b": torch.ones(1)}), "'b' is (1,) of float32, not (1,) of bfloat16"),
    "nan": (reply({**AFTER, "w": torch.tensor([0.0, math.nan, 0.0])}), "'w' holds numbers that are not finite"),
    "inf": (reply({**AFTER, "b": torch.tensor([-math.inf]).to(torch.bfloat16)}), "'b' holds numbers"),
    "no weight": (reply(metrics={}), "number of examples is None"),
    "too many numbers": (reply(metrics={"num-examples": 1, **{f"m{i}": 1.0 for i in range(300)}}), "reports 301"),
    **{
        f"weight {weight}": (reply(metrics={"num-examples": weight}), f"number of examples is {weight}")
        for weight in (0, -3, 0.0, math.nan, math.inf, -math.inf, 1e16)
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reply_that_is_not_what_was_asked_for(name: str) -> None:
    wrong, why = WRONG[name]
    with pytest.raises(InputError, match=re.escape(why)):
        screened(wrong, MEMBER, pack(BEFORE), Plan(rounds=1))


def test_a_change_above_the_norm_is_left_out() -> None:
    assert distance(AFTER, BEFORE) == 5.0
    screened(reply(), MEMBER, pack(BEFORE), Plan(rounds=1, max_norm=5.0))
    with pytest.raises(InputError, match=r"its change has the norm 5, above max_norm = 4\.99"):
        screened(reply(), MEMBER, pack(BEFORE), Plan(rounds=1, max_norm=4.99))


def test_the_norm_of_sixteen_bits_does_not_overflow() -> None:
    far = {"h": torch.full((4,), 60000.0).to(torch.float16)}
    assert distance(far, {"h": -far["h"]}) == pytest.approx(2 * 60000 * 2, rel=1e-3)


@given(st.dictionaries(st.one_of(st.text(max_size=5), st.just("num-examples")), st.floats() | st.integers()))
def test_numbers_of_others_are_finite_and_plainly_named(metrics: dict[str, float]) -> None:
    try:
        told = measured(reply(metrics=metrics), MEMBER)
    except InputError:
        assert not 0 < metrics.get("num-examples", 0) <= 2**53
        return
    assert 0 < told.examples <= 2**53
    assert all(math.isfinite(value) and name.isascii() for name, value in told.metrics.items())
    assert set(told.metrics) <= set(metrics)


@given(st.binary(max_size=24), st.sampled_from(["w", "b"]))
def test_any_bytes_are_a_finite_state_or_refused(data: bytes, name: str) -> None:
    lying = replace(
        reply(), state={**pack(AFTER), name: Packed("float32", (len(data) // 4,), data[: len(data) // 4 * 4])}
    )
    try:
        update = screened(lying, MEMBER, pack(BEFORE), Plan(rounds=1))
    except InputError:
        return
    assert all(bool(value.isfinite().all()) for value in update.state.values())
    assert [value.shape for value in update.state.values()] == [(3,), (1,)]


def test_numbers_are_averaged_over_the_sites_that_have_them() -> None:
    sites = {
        "a": SiteRound(1.0, {"num-examples": 1.0, "loss": 4.0}),
        "b": SiteRound(3.0, {"num-examples": 3.0, "loss": 8.0, "f1": 0.5}),
    }
    assert averaged(sites) == {"loss": 7.0, "f1": 0.5}
    assert averaged({}) == {}
