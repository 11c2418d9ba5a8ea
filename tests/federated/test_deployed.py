"""A server and two sites as real processes, with TLS, keys, pins and the gate; the app is a small one of its own."""

from __future__ import annotations

import json
import re
import ssl
import stat
from http.client import HTTPConnection, HTTPSConnection

import pytest

from deploying import deployed, ended
from fedrag.errors import InputError
from fedrag.federated.client import Request
from fedrag.federated.deployment import keys, pins, worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

PYPROJECT = """
[project]
name = "toy"
version = "1.0.0"
description = "Asks every node once"
license = "LicenseRef-None"
[tool.flwr.app]
publisher = "fedrag"
fab-include = ["task.py"]
[tool.flwr.app.components]
serverapp = "task:server"
clientapp = "task:client"
[tool.flwr.app.config]
word = "plain"
"""
TASK = """
import json, time, tomllib
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.query()
def answer(message, context):
    site = tomllib.loads(Path(context.node_config["site"]).read_text())["name"]
    told = {"site": site, "word": context.run_config["word"]}
    return Message(RecordDict({"told": ConfigRecord(told)}), reply_to=message)

@server.main()
def main(grid, context):
    deadline = time.monotonic() + 60
    while len(nodes := list(grid.get_node_ids())) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    asked = [Message(RecordDict({"c": ConfigRecord({"a": 1})}), node, "query") for node in nodes]
    for reply in grid.send_and_receive(asked, timeout=60):
        told = {"error": reply.error.code} if reply.has_error() else dict(reply.content["told"])
        print("REPLY", json.dumps(told), flush=True)
"""
HOSTILE = """
import os
Path({folder!r}, "ran-in-" + os.environ["FLWR_HOME"].replace("/", "-")).write_text("")
"""


KEPT = """
from fedrag.federated import FederatedTask, Plan

def build(site):
    raise OSError("nothing to train here")

task = FederatedTask(build, Plan(rounds=1))
"""


def write_app(folder, more=""):
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "task.py").write_text(TASK + more)
    return folder


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    with deployed(folder, write_app(folder / "app")) as made:
        made.serve()
        (folder / "kept.py").write_text(KEPT)
        made.start_site("a", more=["--port", str(made.inside), "--worker", str(folder / "kept.py")])
        made.start_site("b")
        made.joined("a", "b")
        yield made


def replies_of(deployment, app, *words):
    """Submit, wait, and return what the server half got back."""
    with deployment.operator() as link:
        log = ended(link, str(link._call("run", str(app), link.name, *words)["run-id"]), seconds=100)
    assert log.startswith("finished:completed"), log
    return [json.loads(text) for text in re.findall(r"REPLY (.*)", log)]


def test_the_pinned_app_runs_at_every_site(deployment):
    replies = replies_of(deployment, deployment.app)
    assert sorted(reply["site"] for reply in replies) == ["a", "b"]


def test_a_site_brings_its_worker_along(deployment):
    path = deployment.folder / "a" / "state" / worker.NAME
    reply = worker.ask(path, Request("hello", {"run": "0" * 16}), seconds=60)
    assert (reply.config["site"], reply.config["fault"], reply.config["class"]) == ("a", "build", "OSError")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_app_is_refused_before_any_of_it_runs(deployment):
    from flwr.common.constant import ErrorCode

    marks = deployment.folder / "marks"
    marks.mkdir()
    hostile = write_app(deployment.folder / "hostile", HOSTILE.format(folder=str(marks)))
    replies = replies_of(deployment, hostile)
    assert replies == [{"error": ErrorCode.INVALID_FAB}] * 2  # the server is told, for each site
    # it does write where it runs: at the server, whose operator submitted it
    (mark,) = marks.iterdir()
    assert mark.name.endswith("link")
    for name in ("a", "b"):
        assert f"its hash {pins.bundle(hostile).hash} is not pinned here" in deployment.log_of(name).read_text()
        installed = deployment.folder / name / "state" / "flower" / "apps"
        assert [path.name[-8:] for path in installed.glob("*")] in ([], [deployment.pin[:8]])
    # and the sites go on with what is pinned
    assert sorted(reply["site"] for reply in replies_of(deployment, deployment.app)) == ["a", "b"]


def test_the_pinned_app_with_other_settings_is_refused(deployment):
    from flwr.common.constant import ErrorCode

    replies = replies_of(deployment, deployment.app, "--run-config", 'word="changed"')
    assert replies == [{"error": ErrorCode.INVALID_FAB}] * 2


def test_a_site_cannot_register_keys_or_submit_code_through_the_gate(deployment, tmp_path):
    keys.write_keys(tmp_path, server=["h"], sites=["c"])
    stranger = tmp_path / "server" / "sites" / "c.pub"
    with deployment.visitor() as link:
        for attempt in (
            lambda: link.register(stranger, name="c"),
            lambda: link.submit(deployment.app),
            lambda: link.runs(),
        ):
            with pytest.raises(InputError, match="403"):
                attempt()
    with deployment.operator() as link:
        # the SuperLink itself asks for no credential: what keeps sites out is the gate alone
        before = len(link.runs())
        assert link.register(stranger, name="c")
        assert not link.register(stranger, name="c")
        assert len(link.runs()) == before


def acquire_task(line, kind):
    """Ask Flower's runtime API for work, as the process that runs an app does; return the HTTP status."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest

    body = AcquireTaskRequest(supported_task_types=[kind]).SerializeToString()
    headers = {"Content-Type": "application/protobuf", "Accept": "application/protobuf"}
    line.request("POST", "/v1/runtime/acquire-task", body=body, headers=headers)
    status = line.getresponse().status
    line.close()
    return status


def test_a_site_cannot_play_the_server_through_the_gate(deployment):
    trusted = ssl.create_default_context(cafile=str(deployment.keys / "a" / "ca.crt"))
    gate, control = (
        HTTPSConnection("localhost", port, context=trusted, timeout=20)
        for port in (deployment.gate, deployment.control)
    )
    assert acquire_task(gate, "flwr-serverapp") == 403
    # what docs/security.md says: the SuperLink itself asks for no credential, nor does a SuperNode on its loopback
    assert acquire_task(control, "flwr-serverapp") == 200
    assert acquire_task(HTTPConnection("127.0.0.1", deployment.inside, timeout=20), "flwr-clientapp") == 200


def test_a_site_whose_key_is_not_registered_is_turned_away(deployment, tmp_path):
    keys.write_keys(tmp_path, server=["h"], sites=["d"])
    (tmp_path / "d" / "ca.crt").write_bytes((deployment.keys / "ca.crt").read_bytes())
    group = deployment.start_site("d", keys=tmp_path / "d")
    assert group.wait(60) not in (0, None)
    assert "Failed to activate SuperNode" in deployment.log_of("d").read_text()


def test_a_site_does_not_trust_another_server(deployment, tmp_path):
    keys.write_keys(tmp_path, server=["localhost"], sites=["e"])  # another authority
    group = deployment.start_site("e", keys=tmp_path / "e")
    assert group.wait(60) not in (0, None)
    assert "CERTIFICATE_VERIFY_FAILED" in deployment.log_of("e").read_text()
