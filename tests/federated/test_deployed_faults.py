"""What goes wrong in a deployment: sites that fail, lie, lag and die, a server that dies, a quorum that is not met.

The app trains a few numbers. What a site is to do in which round stands in its `orders.json`: it raises, waits until it
is let go, or answers through a worker that is not fedrag's and lies. What the server is to demand stands in a
`plan.json`, so that one app, pinned once, runs under several plans.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch

from deploying import Deployment, deployed, ended
from federating import same
from fedrag.federated import FederatedTask, Site, checkpoint
from fedrag.federated.checkpoint import Run
from fedrag.federated.client import Request
from fedrag.federated.deployment import processes, worker
from fedrag.federated.deployment.project import init, load_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

ROUNDS = 3
SECRET = "patient Fischer, ward 7"
TASK = '''
import json
import time
from pathlib import Path

import torch

from fedrag.federated import FederatedTask, Plan

FOLDER = Path({folder!r})


class Steps:
    """Goes a third of the way to its site's target in each round."""

    def __init__(self, site):
        self.folder, self.target = site.folder, float(site.settings["target"])
        self.num_examples, self.secret = int(site.settings["rows"]), site.settings["secret"]
        self.state = {{"w": torch.zeros(3, dtype=torch.float64), "b": torch.ones(1)}}

    def exchange_state(self):
        return {{name: value.clone() for name, value in self.state.items()}}

    def load_exchange_state(self, state):
        self.state = {{name: state[name].clone() for name in self.state}}

    def train(self, segment):
        orders = self.folder / "orders.json"
        order = json.loads(orders.read_text()).get(str(segment.round)) if orders.exists() else None
        if order == "raise":
            raise ValueError(self.secret)
        if order == "wait":
            (self.folder / "waits").write_text("")
            deadline = time.monotonic() + 300
            while not (self.folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        self.state = {{name: value + (self.target - value) / 3 for name, value in self.state.items()}}
        return {{"loss": abs(self.target - float(self.state["b"]))}}

    def evaluate(self):
        return {{"loss": abs(self.target - float(self.state["b"]))}}


task = FederatedTask(Steps, Plan(checkpoint=FOLDER / "run", **json.loads((FOLDER / "plan.json").read_text())))
'''
LIAR = '''
import json
import sys
from dataclasses import replace
from pathlib import Path

from fedrag.federated.deployment.project import load_task
from fedrag.federated.deployment.worker import NAME, serve
from fedrag.federated.exchange import pack, unpack
from fedrag.federated.site import Site


class Liar:
    """Answers as a site does, and puts another state in place of the right one when it is ordered to."""

    def __init__(self, honest, folder):
        self.honest, self.folder = honest, folder

    def answer(self, request):
        reply, orders = self.honest.answer(request), self.folder / "orders.json"
        known = json.loads(orders.read_text()) if orders.exists() and request.kind == "train" else {}
        order, state = known.get(str(request.config.get("round"))), unpack(reply.state)
        if order == "nan":
            return replace(reply, state=pack({name: value * float("nan") for name, value in state.items()}))
        if order == "names":
            return replace(reply, state=pack({"other-" + name: value for name, value in state.items()}))
        return reply


site = Site.open(sys.argv[2])
serve(Liar(load_task(Path(sys.argv[1])).participant(site), site.folder), site.state / NAME)
'''


class Scene:
    """A deployment of three sites with workers; the third one's is the liar."""

    def __init__(self, deployment: Deployment, server: processes.Group, third: list[processes.Group]) -> None:
        self.deployment = deployment
        self.server = server
        self.third = third  # what runs at the third site
        self.folder = deployment.folder

    @property
    def task(self) -> FederatedTask:
        """The task under the plan as it is now."""
        return load_task(self.deployment.app / "task.py")

    @property
    def sites(self) -> list[Site]:
        return [Site.open(self.folder / name / "site.toml") for name in "abc"]

    def set(self, orders: dict[str, dict[int, str]], **plan: Any) -> None:
        """Begin anew: no checkpoint, these orders, this plan."""
        rmtree(self.folder / "run", ignore_errors=True)
        write_plan(self.folder, **plan)
        for name in "abc":
            for mark in ("waits", "go"):
                (self.folder / name / mark).unlink(missing_ok=True)
            (self.folder / name / "orders.json").write_text(json.dumps(orders.get(name, {})))

    def run(self) -> Run | None:
        """What is in the checkpoint now."""
        return checkpoint.load(self.folder / "run", self.task.plan)

    def await_rounds(self, count: int, seconds: float = 240) -> None:
        self._await(lambda: (run := self.run()) is not None and len(run.history.rounds) >= count, seconds)

    def await_waiting(self, name: str, seconds: float = 240) -> None:
        self._await((self.folder / name / "waits").exists, seconds)

    def _await(self, come: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not come():
            assert time.monotonic() < deadline, self.deployment.log_of("server").read_text()
            time.sleep(0.3)

    def let_go(self, name: str) -> None:
        (self.folder / name / "go").write_text("")

    def undisturbed(self) -> dict[str, torch.Tensor]:
        """The final state of a run in this process in which nothing goes wrong."""
        task = self.task
        calm = [Site(site.name, self.folder / "calm" / site.name, settings=site.settings) for site in self.sites]
        return FederatedTask(task.build, replace(task.plan, checkpoint=None)).run(calm, progress=False).state

    def at_the_server(self) -> bytes:
        """All that the server's side holds: database, unpacked apps, logs, the checkpoint with its history."""
        places = [self.deployment.home, self.folder / "run", self.deployment.log_of("server")]
        files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place])]
        return b"\n".join(file.read_bytes() for file in files if file.is_file())


def write_plan(folder: Path, **plan: Any) -> None:
    (folder / "plan.json").write_text(json.dumps({"rounds": ROUNDS, "round_timeout": 240, **plan}))


def kill(*groups: processes.Group) -> None:
    """`kill -9` for processes and all that they started, at once."""
    family = [pid for group in groups for pid in (group.pid, *(pid for pid, _ in processes.descendants(group.pid)))]
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    for group in groups:
        group.wait(10)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("faults")
    write_plan(folder)
    (folder / "task.py").write_text(TASK.format(folder=str(folder)))
    (folder / "liar.py").write_text(LIAR)
    app = init(folder / "task.py", folder / "app", name="faults")
    with deployed(folder, app, sites="abc") as made:
        server = made.serve()
        for number, name in enumerate("abc"):
            more = ["--worker", str(app / "task.py")] if name != "c" else []
            settings = f'[settings]\ntarget = {number + 1.5}\nrows = {number + 2}\nsecret = "{SECRET}"\n'
            made.start_site(name, settings=settings, more=more)
        words = [sys.executable, str(folder / "liar.py"), str(app / "task.py"), str(folder / "c" / "site.toml")]
        with made.log_of("liar").open("wb") as log:
            made.groups.append(processes.Group(words, env=processes.environment(), output=log, cwd=folder))
        made.joined(*"abc")
        deadline = time.monotonic() + 90
        while not all((folder / name / "state" / worker.NAME).exists() for name in "abc"):
            assert time.monotonic() < deadline, made.log_of("liar").read_text()
            time.sleep(0.2)
        for name in "abc":  # a worker's first answer is the slow one: rounds with a short deadline are not to pay it
            reply = worker.ask(folder / name / "state" / worker.NAME, Request("hello", {"run": "0" * 16}), seconds=200)
            assert reply.config["site"] == name
            assert "fault" not in reply.config
        yield Scene(made, server, made.groups[-2:])


def test_sites_that_fail_lie_and_lag_are_left_out_and_the_run_goes_on(scene: Scene) -> None:
    scene.set({"b": {0: "raise", 1: "wait"}, "c": {0: "nan", 1: "names"}}, round_timeout=120)
    with scene.deployment.operator() as link:
        id = link.submit(scene.deployment.app).id
        scene.await_rounds(2)
        scene.let_go("b")  # what it answers now is too late for the round that asked
        log = ended(link, id)
    assert log.startswith("finished:completed"), log
    run = scene.run()
    assert run is not None
    first, second, third = run.history.rounds
    assert list(first.sites) == ["a"]
    assert first.rejected == {
        "b": "training failed (ValueError)",
        "c": "'w' holds numbers that are not finite",
    }
    assert list(second.sites) == ["a"]
    assert second.rejected == {"c": "its parameter names differ: 'b'"}
    assert second.silent == ("b",)
    assert list(third.sites) == ["a", "b", "c"]
    assert run.history.closing is not None
    assert all(bool(value.isfinite().all()) for value in run.state.values())

    # the text of the site's error is in its own log, and nowhere at the server
    assert SECRET in scene.deployment.log_of("b").read_text()
    told = scene.deployment.command("status", id)
    assert told.returncode == 0
    assert "training failed (ValueError)" in told.stdout
    everything = scene.at_the_server() + told.stdout.encode() + told.stderr.encode() + log.encode()
    assert b"training failed (ValueError)" in everything
    for word in (SECRET, *SECRET.split(",")):
        assert word.encode() not in everything


def test_a_run_whose_server_died_is_resumed_and_ends_as_if_it_had_not(scene: Scene) -> None:
    scene.set({"a": {1: "wait"}}, quorum=3)
    with scene.deployment.operator() as link:
        id = link.submit(scene.deployment.app).id
        scene.await_waiting("a")
    kill(scene.server)
    before = scene.run()
    assert before is not None
    assert len(before.history.rounds) == 1
    scene.let_go("a")
    scene.server = scene.deployment.serve()
    with scene.deployment.operator() as link:
        assert link.finished(id, seconds=200).status == "finished:failed"  # nobody works on it any more
    told = scene.deployment.command("resume", "--app", str(scene.deployment.app), "--wait", "200")
    assert told.returncode == 0, told.stdout + told.stderr
    run = scene.run()
    assert run is not None
    assert run.token == before.token
    assert [one.number for one in run.history.rounds] == [0, 1, 2]
    assert all(list(one.sites) == ["a", "b", "c"] for one in run.history.rounds)
    assert same(run.state, scene.undisturbed())


def test_a_site_that_is_killed_is_left_out_and_the_quorum_counts_those_that_are_left(scene: Scene) -> None:
    scene.set({"c": {1: "wait"}}, quorum=2)
    with scene.deployment.operator() as link:
        id = link.submit(scene.deployment.app).id
        scene.await_waiting("c")
        kill(*scene.third)
        log = ended(link, id, seconds=400)
    assert log.startswith("finished:completed"), log
    run = scene.run()
    assert run is not None
    first, *later = run.history.rounds
    assert list(first.sites) == ["a", "b", "c"]
    assert "c" in later[0].rejected or "c" in later[0].silent
    assert [list(one.sites) for one in later] == [["a", "b"]] * 2
    assert run.history.closing is not None
    assert list(run.history.closing.sites) == ["a", "b"]

    scene.set({}, quorum=3, node_timeout=5)
    began = time.monotonic()
    with scene.deployment.operator() as link:
        id = link.submit(scene.deployment.app).id
        log = ended(link, id)
    assert log.startswith("finished:failed"), log
    assert "QuorumError: 2 sites are there after 5 s, the plan's quorum is 3" in log
    assert time.monotonic() - began < 120  # most of it is Flower's start of a process
    told = scene.deployment.command("status", id)
    assert "the plan's quorum is 3" in told.stdout
    assert scene.run() is None
