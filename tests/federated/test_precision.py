"""Sixteen bits: parameters of bf16 stay so both ways; float32 sent as bf16 costs half, and loses what bf16 loses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message

from federating import Outcome, Walker, federate, same, three
from fedrag.federated import Plan, Site
from fedrag.federated.exchange import from_record, unpack


def half(site: Site) -> Walker:
    return Walker(site, dtype=torch.bfloat16)


def arrays(messages: list[Message]) -> list[ArrayRecord]:
    found = [message.content["arrays"] for message in messages if message.content["arrays"]]
    assert found
    return found


def test_bf16_is_bf16_everywhere() -> None:
    outcome = federate(half, Plan(rounds=2), three())
    for record in arrays([*outcome.grid.down, *outcome.grid.up]):
        assert {array.dtype for array in record.values()} == {"bfloat16"}
        assert sum(len(array.data) for array in record.values()) == 2 * 6
    assert {value.dtype for value in outcome.run.state.values()} == {torch.bfloat16}
    alone = federate(half, Plan(rounds=2), three()[:1])  # its average is itself, to the bit
    assert same(alone.run.state, last_reply(alone))


def last_reply(outcome: Outcome) -> dict[str, torch.Tensor]:
    trained = [message for message in outcome.grid.up if message.metadata.message_type == "train"]
    return unpack(from_record(trained[-1].content["arrays"]))


def test_half_the_bytes_and_no_more_lost_than_that() -> None:
    runs = {precision: federate(Walker, Plan(rounds=1, precision=precision), three()) for precision in PRECISIONS}
    full, less = runs["keep"], runs["bfloat16"]
    assert (full.rounds[0].bytes_down, full.rounds[0].bytes_up) == (72, 72)
    assert (less.rounds[0].bytes_down, less.rounds[0].bytes_up) == (36, 36)
    assert sum(len(array.data) for record in arrays(less.grid.up) for array in record.values()) == 2 * 6 * 6
    for name, value in full.run.state.items():
        assert less.run.state[name].dtype == torch.float32  # the average of what came is not rounded again
        assert torch.all((less.run.state[name] - value).abs() <= 2.0**-7 * value.abs().max())
    assert not same(full.run.state, less.run.state)


PRECISIONS: Any = ("keep", "bfloat16")


@pytest.mark.parametrize("build", [Walker, half])
def test_a_site_gets_its_own_dtype_whatever_travels(build: Any) -> None:
    built: list[Walker] = []

    def once(site: Site) -> Walker:
        built.append(build(site))
        return built[-1]

    federate(once, Plan(rounds=2, precision="bfloat16"), three())
    assert len(built) == 3
    for walker in built:
        assert {value.dtype for value in walker.state.values()} == {walker.exchange_state()["w"].dtype}
        assert walker.state["w"].dtype == (torch.float32 if build is Walker else torch.bfloat16)
