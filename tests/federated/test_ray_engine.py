"""The engine on Ray: the same numbers as in this process, failures come out, and this process is left as it was."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedrag.errors import InputError, MissingExtraError, TrainingError
from fedrag.federated.engines import ray as engine
from fedrag.federated.engines.local import run_local
from fedrag.federated.engines.ray import run_ray

SITES = 3
ROUNDS = 3
FAILING = 1
slow = pytest.mark.slow
pytestmark = [  # Ray leaves closing its files and children to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass
class Seen:
    """What a server saw of a run."""

    losses: list[float] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    errors: list[tuple[int, str | None]] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)


def step(weights: np.ndarray, rows: torch.Tensor, wanted: torch.Tensor, rate: float) -> tuple[np.ndarray, float]:
    """A step of gradient descent on least squares."""
    w = torch.tensor(weights, requires_grad=True)
    loss = ((rows @ w - wanted) ** 2).mean()
    loss.backward()
    return (w - rate * w.grad).detach().numpy(), loss.item()


def client_app(rate: float, crash: Callable[[int], None] = lambda _: None) -> ClientApp:
    """Closures over this file's functions, a number and a function."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        part = int(context.node_config["partition-id"])
        if part == FAILING and message.metadata.group_id == "1":
            raise ValueError(f"patient Fischer of {part}")
        crash(part)
        seen = context.state["seen"]["n"] + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"n": seen})
        generator = torch.Generator().manual_seed(part)
        rows, wanted = torch.randn(8, 4, generator=generator), torch.randn(8, generator=generator)
        weights, loss = step(message.content["arrays"]["w"].numpy(), rows, wanted, rate)
        numbers = MetricRecord({"part": part, "loss": loss, "seen": seen, "pid": os.getpid()})
        return Message(RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "m": numbers}), reply_to=message)

    return app


def server_app(seen: Seen, last: Callable[[], None] = lambda: None) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        weights = np.zeros(4, dtype=np.float32)
        while len(nodes := list(grid.get_node_ids())) < SITES:
            time.sleep(0.05)
        for number in range(ROUNDS):
            content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)})})
            asked = [Message(content, node, "train", group_id=str(number)) for node in nodes]
            replies = list(grid.send_and_receive(asked, timeout=60))
            seen.errors += [(reply.error.code, reply.error.reason) for reply in replies if reply.has_error()]
            good = {reply.content["m"]["part"]: reply.content for reply in replies if reply.has_content()}
            weights = np.mean([good[part]["arrays"]["w"].numpy() for part in sorted(good)], axis=0)
            seen.losses.append(float(np.mean([good[part]["m"]["loss"] for part in sorted(good)])))
            seen.counts.append([good[part]["m"]["seen"] for part in sorted(good)])
            seen.pids |= {content["m"]["pid"] for content in good.values()}
        last()

    return app


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


def surroundings() -> dict[str, object]:
    entry = import_module("flwr.simulation.run_simulation")
    return {
        "environment": dict(os.environ),
        "identity": (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id),
        "telemetry": entry.event,
        "log": (list(logging.getLogger("flwr").filters), logging.getLogger("flwr").propagate),
        "threads": {thread.name for thread in threading.enumerate()},
        "random": torch.get_rng_state().tolist(),
        "print": print,
    }


@slow
def test_ray_agrees_with_this_process_and_leaves_it_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    import ray  # what its import alone does to this process is not ours

    before = surroundings()
    here, there = Seen(), Seen()
    run_ray(server_app(there), client_app(rate=0.1), SITES)
    assert not ray.is_initialized()
    assert surroundings() == before
    printed = capfd.readouterr()
    assert "DEPRECATED" not in printed.err + printed.out
    assert "Fischer" not in printed.err + printed.out  # it is in the sites' log

    run_local(server_app(here), client_app(rate=0.1), [{"partition-id": part} for part in range(SITES)])
    assert here.losses[-1] < here.losses[0]
    np.testing.assert_allclose(there.losses, here.losses, atol=1e-5)
    assert there.counts == here.counts == [[1, 1, 1], [2, 2], [3, 2, 3]]
    assert there.errors == here.errors == [(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError")]
    assert os.getpid() not in there.pids
    assert here.pids == {os.getpid()}


@slow
def test_a_site_whose_process_dies_fails_alone_and_what_the_server_raises_comes_out(tmp_path: Path) -> None:
    def crash(part: int) -> None:
        if part == 2 and len(list(tmp_path.iterdir())) < 2:  # also when its message is tried once more
            (tmp_path / str(os.getpid())).touch()
            os._exit(3)

    def last() -> None:
        raise error

    seen, error = Seen(), SystemExit("as it is")
    one_process = {"num_cpus": os.cpu_count() or 1}  # all sites in it, so that all would suffer
    with pytest.raises(SystemExit) as caught:
        run_ray(server_app(seen, last), client_app(0.1, crash), SITES, client_resources=one_process)
    assert caught.value is error
    assert [code for code, _ in seen.errors] == [ErrorCode.UNKNOWN, ErrorCode.CLIENT_APP_RAISED_EXCEPTION]
    assert seen.counts == [[1, 1], [2, 1], [3, 2, 2]]


@slow
def test_a_server_does_not_wait_for_an_engine_that_cannot_start() -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < SITES:
            time.sleep(0.05)
        grid.send_and_receive([Message(RecordDict(), node, "train") for node in nodes])  # no timeout

    threads = threading.active_count()
    with pytest.raises(TrainingError, match="Ray cannot run sites with 1000 CPUs and 0 GPUs each: ActorPool is empty"):
        run_ray(app, client_app(0.1), SITES, client_resources={"num_cpus": 1000})
    assert threading.active_count() == threads


def test_what_cannot_be_sent_is_refused_before_ray_starts() -> None:
    import ray

    lock = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be sent to another process: cannot pickle '_thread.lock'"):
        run_ray(server_app(Seen()), client_app(0.1, lambda _: lock.release()), SITES)
    assert not ray.is_initialized()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="nodes=0"):
        run_ray(server_app(Seen()), client_app(0.1), 0)
    with pytest.raises(InputError, match="num_cpus=0"):
        run_ray(server_app(Seen()), client_app(0.1), 1, client_resources={"num_cpus": 0})


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed.*fedrag\[simulation\]"):
        run_ray(server_app(Seen()), client_app(0.1), SITES)


def test_functions_of_a_file_that_was_loaded_by_its_path_can_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    (tmp_path / "recipe.py").write_text("RATE = 3\n\ndef rate():\n    return RATE\n")
    spec = spec_from_file_location("recipe", tmp_path / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recipe", recipe)
    spec.loader.exec_module(recipe)
    with engine._sendable(client_app(0.1, lambda _: recipe.rate())):
        sent = cloudpickle.dumps(recipe.rate)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)())"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, timeout=60, cwd="/")
    assert done.stdout == b"3\n", done.stderr.decode()
    assert len(cloudpickle.dumps(recipe.rate)) < len(sent) / 4  # by name again


def test_modules_that_no_other_process_finds_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str, folder: Path) -> ModuleType:
        module = ModuleType(name)
        module.__file__ = str(folder / f"{name.split('.')[-1]}.py")
        return module

    (tmp_path / "on_the_path.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inside.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    unimportable = engine._unimportable
    assert not unimportable("on_the_path", loaded("on_the_path", tmp_path))
    assert not unimportable("package.inside", loaded("package.inside", tmp_path / "package"))
    assert unimportable("task", loaded("task", elsewhere))
    assert unimportable("on_the_path", loaded("on_the_path", elsewhere))  # another file of that name would be found
    assert unimportable("absent.inside", loaded("absent.inside", elsewhere))
    assert not unimportable("torch", torch)
    assert not unimportable("fedrag.federated.engines.ray", engine)
    assert not unimportable("__main__", loaded("__main__", elsewhere))
    assert not unimportable("gone", None)
