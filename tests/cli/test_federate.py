"""`fedrag federate` as a person would use it, up to what wants a server; that is in `test_deployed.py`."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fedrag.cli import app
from fedrag.errors import FedRAGError
from fedrag.federated.deployment import processes

# Flower's bundler asks pathspec by an old name
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

COMMANDS = [
    "init",
    "keys",
    "pin",
    "server",
    "site",
    "worker",
    "register",
    "submit",
    "resume",
    "status",
    "stop",
    "doctor",
]
TASK = """\
from fedrag.federated import FederatedTask, Plan, Site

def build(site: Site):
    raise NotImplementedError

task = FederatedTask(build, Plan(rounds=2, quorum=2))
"""


def federate(*words, fails=None):
    """Run a command in this process; return what it prints, or check its complaint."""
    result = CliRunner().invoke(app, ["federate", *map(str, words)])
    if fails is None:
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout
    assert isinstance(result.exception, FedRAGError), (result.output, result.exception)
    assert re.search(fails, str(result.exception)), result.exception
    return ""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command):
    result = CliRunner().invoke(app, ["federate", *command.split(), "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert len(result.output.rstrip().splitlines()) <= (36 if not command else 24)


def test_help_loads_neither_torch_nor_flower():
    code = (
        "import sys; from fedrag.cli import app\ntry: app(['federate', '--help'])\nfinally: print(sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "'typer'" in done.stdout
    assert not {"'torch'", "'flwr'", "'cryptography'"} & set(re.findall(r"'\w+'", done.stdout))


def test_from_a_task_file_to_keys_and_a_pin(place):
    told = federate("init", "task.py", "--to", "app")
    (pin,) = re.findall(r"pin ([0-9a-f]{64})", told)
    assert federate("pin", "app").strip() == pin
    federate("init", "task.py", "--to", "app", fails="--force")
    federate("keys", "--out", "keys", "--server", "fl.example.org,10.0.0.7", "--sites", "north, south")
    assert {path.name for path in (place / "keys").iterdir()} == {"ca.crt", "ca.key", "server", "north", "south"}
    federate("keys", "--out", "keys", "--sites", "north", fails="is there already")
    federate("keys", "--out", "keys", fails="name at least one")
    told = federate("doctor", "--app", "app", "--keys", "keys/server", "--port", processes.free_port())
    assert "FAIL" not in told
    assert pin in told
    assert "warn  its plan has no checkpoint" in told


def test_the_doctors_status_says_whether_something_is_wrong(place):
    (place / "site.toml").write_text("name = 3\n")
    result = CliRunner().invoke(app, ["federate", "doctor", "--site", "site.toml"])
    assert result.exit_code == 1
    assert "FAIL" in result.stdout


def test_what_cannot_start_says_why(place):
    federate("keys", "--out", "keys", "--server", "localhost", "--sites", "north")
    (place / "site.toml").write_text('name = "north"\n')
    site = ["site", "site.toml", "--server", "localhost:1"]
    federate(*site, "--keys", "keys/north", fails="nothing is pinned")
    federate(*site, "--keys", "keys/north", "--pin", "abc", fails="is no pin")
    federate(*site, "--keys", "keys/south", "--pin", "a" * 64, fails="ca.crt is not there")
    federate("site", "no.toml", "--server", "localhost:1", "--keys", "keys/north", fails="cannot be read")
    federate("server", "--keys", "keys/north", fails=r"server\.crt is not there")
    federate("worker", "task.py", "--site", "no.toml", fails="cannot be read")
    federate("submit", "localhost:1", "--app", "nowhere", fails=r"no pyproject\.toml")
    federate("status", "localhost:1", "--ca", "no.crt", fails="is not there")


def test_a_taken_port_is_named_before_anything_starts(place):
    import socket

    federate("keys", "--out", "keys", "--server", "localhost")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        federate("server", "--keys", "keys/server", "--control-port", port, fails=f"port {port} is taken")
    assert not (place / "superlink").exists()


def test_a_path_that_flowers_configuration_cannot_hold_is_refused(place):
    federate("keys", "--out", "keys", "--server", "localhost", "--sites", "north")
    odd = place / "it's"
    odd.mkdir()
    (odd / "site.toml").write_text('name = "north"\n')
    words = ["--server", "localhost:1", "--keys", "keys/north", "--pin", "a" * 64]
    federate("site", odd / "site.toml", *words, fails="holds a character")
