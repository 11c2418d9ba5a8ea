"""The engine of one process: messages are copies, sites are alone with their context, failures become replies."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedrag.errors import InputError, MissingExtraError, TrainingError
from fedrag.federated.engines.local import LocalGrid, identity, run_local
from fedrag.optional import require

RUN = 5
NODES = [{"target": 1.0}, {"target": 4.0}, {"target": 10.0}]


def client_of(train: Callable[[Message, Context], Message]) -> ClientApp:
    app = ClientApp()
    app.train()(train)
    return app


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def halfway(message: Message, context: Context) -> Message:
    """One step of half the way to the site's target, which is least squares on one number."""
    w = message.content["arrays"]["w"].numpy()
    w = w + 0.5 * (context.node_config["target"] - w)
    arrays = ArrayRecord({"w": Array(w)})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def array(*numbers: float) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.array(numbers, dtype=np.float32))})})


def messages(grid: Grid, content: RecordDict | None = None, ttl: float | None = None) -> list[Message]:
    return [Message(content or RecordDict(), node, "train", ttl=ttl) for node in grid.get_node_ids()]


def test_sites_work_one_after_another_in_the_order_pushed() -> None:
    seen: list[str] = []

    def train(message: Message, context: Context) -> Message:
        seen.append(f"begin {context.node_config['target']}")
        time.sleep(0.01)
        seen.append(f"end {context.node_config['target']}")
        return Message(RecordDict({"m": MetricRecord({"t": context.node_config["target"]})}), reply_to=message)

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES, run_id=RUN)
        replies = grid.send_and_receive(reversed(messages(grid)))
    assert [reply.content["m"]["t"] for reply in replies] == [10.0, 4.0, 1.0]
    assert seen == ["begin 10.0", "end 10.0", "begin 4.0", "end 4.0", "begin 1.0", "end 1.0"]


def test_a_message_is_carried_out_when_its_reply_is_pulled() -> None:
    done: list[float] = []

    def train(message: Message, context: Context) -> Message:
        done.append(context.node_config["target"])
        return echo(message, context)

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES, run_id=RUN)
        first, second, third = grid.push_messages(messages(grid))
        assert done == []
        assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([third])] == [third]
        assert done == [10.0]
        assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([second, first])] == [first]
        assert done == [10.0, 1.0]


def test_a_context_outlives_the_message_and_is_the_sites_own() -> None:
    def train(message: Message, context: Context) -> Message:
        count = context.state["seen"]["n"] + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"n": count})
        return Message(RecordDict({"m": context.state["seen"]}), reply_to=message)

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES[:2], run_id=RUN)
        first, second = grid.get_node_ids()
        counts: list[int] = []
        for node in (first, first, second, first):
            (reply,) = grid.send_and_receive([Message(RecordDict(), node, "train")])
            counts.append(reply.content["m"]["n"])
            reply.content["m"]["n"] = 100  # the server's copy
    assert counts == [1, 2, 1, 3]


def test_a_site_that_fails_keeps_the_context_from_before() -> None:
    def train(message: Message, context: Context) -> Message:
        if "half" in context.state:
            return Message(RecordDict({"m": MetricRecord({"half": 1})}), reply_to=message)
        context.state["half"] = MetricRecord({"n": 1})
        raise ValueError

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES[:1], run_id=RUN)
        assert [grid.send_and_receive(messages(grid))[0].has_error() for _ in range(2)] == [True, True]


@pytest.mark.parametrize("serde", [False, True])
def test_what_one_site_does_to_its_message_no_other_sees(serde: bool) -> None:
    seen: list[tuple[list[float], list[int], set[str]]] = []

    def train(message: Message, context: Context) -> Message:
        content = message.content
        seen.append((content["arrays"]["w"].numpy().tolist(), list(content["config"]["steps"]), set(content)))
        content["arrays"]["w"].data = b""
        content["config"]["steps"].append(9)
        content["mine"] = MetricRecord({"x": 1})
        return echo(message, context)

    shared = array(1.0, 2.0)
    shared["config"] = ConfigRecord({"steps": [1, 2]})
    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES, run_id=RUN, serde=serde)
        grid.send_and_receive(messages(grid, shared))
    assert seen == [([1.0, 2.0], [1, 2], {"arrays", "config"})] * 3
    assert shared["arrays"]["w"].numpy().tolist() == [1.0, 2.0]
    assert list(shared) == ["arrays", "config"]


def test_copies_share_the_bytes_of_arrays() -> None:
    sent = array(1.0, 2.0)
    with identity(RUN):
        grid = LocalGrid(client_of(echo), NODES, run_id=RUN)
        for reply in grid.send_and_receive(messages(grid, sent)):
            assert reply.content["arrays"]["w"].data is sent["arrays"]["w"].data
            assert reply.content["arrays"]["w"] is not sent["arrays"]["w"]


@pytest.mark.parametrize("serde", [False, True])
def test_an_exception_becomes_an_error_without_its_text(serde: bool, caplog: pytest.LogCaptureFixture) -> None:
    def train(message: Message, context: Context) -> Message:
        if context.node_config["target"] == 4.0:
            raise ValueError("patient Fischer, ward 7")
        return echo(message, context)

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES, run_id=RUN, serde=serde)
        one, two, three = grid.send_and_receive(messages(grid))
    assert one.has_content()
    assert three.has_content()
    assert (two.error.code, two.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError")
    assert "Fischer" not in repr(two)
    assert "Fischer" in caplog.text  # the site's own log


def test_an_app_that_returns_no_reply_has_failed() -> None:
    with identity(RUN):
        grid = LocalGrid(client_of(lambda message, context: None), NODES[:1], run_id=RUN)  # type: ignore[arg-type]
        assert grid.send_and_receive(messages(grid))[0].error.reason == "TypeError"
        strange = Message(RecordDict(), 7, "train")
        grid = LocalGrid(client_of(lambda message, context: strange), NODES[:1], run_id=RUN)
        assert grid.send_and_receive(messages(grid))[0].error.reason == "TypeError"


def test_a_keyboard_interrupt_stops_the_run() -> None:
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES, run_id=RUN)
        with pytest.raises(KeyboardInterrupt):
            grid.send_and_receive(messages(grid))


def test_a_silent_site_neither_works_nor_replies() -> None:
    done: list[float] = []

    def train(message: Message, context: Context) -> Message:
        done.append(context.node_config["target"])
        return echo(message, context)

    with identity(RUN):
        grid = LocalGrid(
            client_of(train), NODES, run_id=RUN, silence=lambda message: message.metadata.dst_node_id == dead
        )
        _, dead, _ = grid.get_node_ids()
        replies = grid.send_and_receive(messages(grid))  # no timeout: what cannot come is not waited for
        assert [reply.metadata.src_node_id == dead for reply in replies] == [False, False]
        assert done == [1.0, 10.0]
        first, second, third = grid.push_messages(messages(grid))
        assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([second, third])] == [third]
        assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([first, second])] == [first]
        assert grid.pull_messages([second]) == []


def test_silence_is_known() -> None:
    with identity(RUN):
        grid = LocalGrid(client_of(echo), NODES, run_id=RUN, silence=lambda message: True)
        ids = grid.push_messages(messages(grid))
        assert grid.silent == set()
        assert grid.pull_messages(ids) == []
        assert grid.silent == set(ids)
        assert grid.pull_messages(ids) == []


def test_serde_changes_nothing_that_a_network_would_carry() -> None:
    content = RecordDict(
        {
            "arrays": ArrayRecord(
                {
                    "large": Array(np.zeros(1_600_000, dtype=np.float32)),  # two chunks of Flower's, alike
                    "alike": Array(np.zeros(3, dtype=np.float32)),
                    "again": Array(np.zeros(3, dtype=np.float32)),
                    "scalar": Array(np.array(2.5)),
                    "raw": Array("bfloat16", (2,), "bytes", b"\x00\x01\x02\x03"),
                }
            ),
            "config": ConfigRecord({"text": "x", "flag": True, "list": [1.5, 2.5]}),
            "metrics": MetricRecord({"n": 3}),
            "empty": ArrayRecord(),
        }
    )
    with identity(RUN):
        grid = LocalGrid(client_of(echo), NODES[:1], run_id=RUN, serde=True)
        ids = grid.push_messages(messages(grid, content))
        (reply,) = grid.pull_messages(ids)
    assert reply.content == content
    assert list(reply.content["arrays"]) == list(content["arrays"])
    assert reply.content["arrays"]["large"].data is not content["arrays"]["large"].data
    assert reply.metadata.reply_to_message_id == ids[0]
    assert reply.metadata.message_id not in ("", ids[0])


def test_serde_finds_what_only_a_network_would_refuse() -> None:
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"n": 2**70})}), reply_to=message)

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES[:1], run_id=RUN)
        assert grid.send_and_receive(messages(grid))[0].content["m"]["n"] == 2**70
        grid = LocalGrid(client_of(train), NODES[:1], run_id=RUN, serde=True)
        with pytest.raises(ValueError, match="range"):
            grid.send_and_receive(messages(grid))


@pytest.mark.parametrize("serde", [False, True])
def test_bytes_are_those_of_the_arrays(serde: bool) -> None:
    def train(message: Message, context: Context) -> Message:
        if context.node_config["target"] == 10.0:
            raise ValueError
        return Message(
            RecordDict({"a": ArrayRecord({"w": Array("bfloat16", (3,), "bytes", bytes(6))})}), reply_to=message
        )

    content = array(*range(100))
    content["more"] = ArrayRecord({"raw": Array("bfloat16", (2,), "bytes", bytes(4))})
    content["config"] = ConfigRecord({"counts": "for nothing"})
    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES, run_id=RUN, serde=serde)
        ids = grid.push_messages(messages(grid, content))
        assert (grid.bytes_down, grid.bytes_up) == (3 * (128 + 400 + 4), 0)  # 128 is numpy's header
        grid.pull_messages(ids)
        assert grid.bytes_up == 6
        grid.pull_messages(ids[1:])
        grid.pull_messages(ids[2:])
        assert grid.bytes_up == 12  # an error has no arrays


def test_an_expired_message_is_not_carried_out() -> None:
    done: list[Message] = []

    def train(message: Message, context: Context) -> Message:
        done.append(message)
        return echo(message, context)

    with identity(RUN):
        grid = LocalGrid(client_of(train), NODES[:1], run_id=RUN)
        late, fresh = [*messages(grid, ttl=0.001), *messages(grid, ttl=100.0)]
        time.sleep(0.01)
        replies = grid.send_and_receive([late, fresh])
    assert replies[0].error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert replies[1].has_content()
    assert len(done) == 1


def test_what_a_timeout_leaves_can_be_pulled_later() -> None:
    with identity(RUN):
        grid = LocalGrid(client_of(echo), NODES, run_id=RUN)
        sent = messages(grid)
        assert grid.send_and_receive(sent, timeout=0) == []
        assert len(grid.pull_messages([message.metadata.message_id for message in sent])) == 1


def test_wrong_ids_are_refused() -> None:
    with identity(RUN):
        grid = LocalGrid(client_of(echo), NODES, run_id=RUN)
        with pytest.raises(InputError, match=r"node 99; nodes are \[2, 3, 4\]"):
            grid.push_messages([Message(RecordDict(), 99, "train")])
        ids = grid.push_messages(messages(grid))
        grid.pull_messages(ids)
        with pytest.raises(InputError, match="1 of 3 ids belong to no message that waits"):
            grid.pull_messages(ids)
    with pytest.raises(InputError, match="no nodes"):
        run_local(ServerApp(), ClientApp(), [])


def test_flowers_own_strategy_runs() -> None:
    found: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0)
        result = strategy.start(grid=grid, initial_arrays=array(0.0)["arrays"], num_rounds=2)
        found.extend(result.arrays["w"].numpy().tolist())

    run_local(server, client_of(halfway), NODES, serde=True)
    assert found == pytest.approx([0.75 * 5.0])  # half the way to the mean of the targets, twice


def server_of(main: Callable[[Grid, Context], None]) -> ServerApp:
    app = ServerApp()
    app.main()(main)
    return app


def test_an_exception_of_the_server_comes_out_and_the_next_run_may_begin() -> None:
    error = LookupError("as it is")

    def main(grid: Grid, context: Context) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        run_local(server_of(main), client_of(echo), NODES)
    assert caught.value is error
    run_local(server_of(lambda grid, context: None), client_of(echo), NODES)


def test_the_identity_from_before_comes_back() -> None:
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 11, 12, 13
    try:
        with identity(RUN):
            assert (TaskIdentity.run_id, TaskIdentity.node_id) == (RUN, 1)
        assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (11, 12, 13)
        TaskIdentity._run_id = None
        with identity(RUN):
            pass
        assert TaskIdentity._run_id is None
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def test_one_run_at_a_time() -> None:
    def main(grid: Grid, context: Context) -> None:
        (run_id,) = {message.metadata.run_id for message in messages(grid)}
        with pytest.raises(TrainingError, match="a federated run is going on in this process"):
            run_local(server_of(lambda grid, context: None), client_of(echo), NODES)
        assert {message.metadata.run_id for message in messages(grid)} == {run_id}  # still ours
        seen.append(grid.send_and_receive(messages(grid))[0].error.reason)

    def train(message: Message, context: Context) -> Message:
        run_local(server_of(lambda grid, context: None), client_of(echo), NODES)
        return echo(message, context)

    seen: list[str | None] = []
    run_local(server_of(main), client_of(train), NODES)
    assert seen == ["TrainingError"]


def test_a_run_draws_no_random_number() -> None:
    def main(grid: Grid, context: Context) -> None:
        grid.send_and_receive(messages(grid, array(0.0)))

    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    run_local(server_of(main), client_of(halfway), NODES, serde=True)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_missing_library_is_named_with_its_extra() -> None:
    require("flwr", extra="federated")
    with pytest.raises(MissingExtraError, match=r"no_such_library is not installed.*'fedrag\[some\]'"):
        require("no_such_library", extra="some")
    code = "import sys; sys.modules['flwr'] = None; import fedrag.federated.engines.local"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "MissingExtraError: flwr is not installed; install it with: pip install 'fedrag[federated]'" in done.stderr
