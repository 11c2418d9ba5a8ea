"""The canary: every name of Flower's that is not public and that we touch all the same, and what to do when it goes.

Flower promises what `flwr.app`, `flwr.clientapp`, `flwr.serverapp` and `flwr.serverapp.strategy` list in `__all__`. All
else may move in any release. This file finds what the package imports of it, demands a line here for each, and tries
the behaviour that we rely on. When a newer Flower turns it red, nothing else needs to be searched.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedrag.federated.engines.local import LocalGrid, identity

SOURCE = Path(__file__).parents[2] / "src" / "fedrag"
PUBLIC = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}

FRAGILE = {
    ("flwr.common.constant", "SUPERLINK_NODE_ID"): "it is 1: write it into engines/local.py",
    ("flwr.common.constant", "ErrorCode"): "whole numbers from 0 to 8: find where codes of errors went",
    ("flwr.supercore.task_identity", "TaskIdentity"): (
        "see what flwr.app.Message.__init__ reads now to learn who writes, and set that in engines.local.identity"
    ),
    ("flwr.supercore.run", "Run"): "only for types and Run.create_empty, in engines/local.py: see what Grid.run is now",
    ("flwr.supercore.inflatable.inflatable_object", "get_all_nested_objects"): (
        "for serde=True of engines/local.py: see how flwr.superlink.grid.http_grid takes a message apart"
    ),
    ("flwr.supercore.inflatable.inflatable_utils", "inflate_object_from_contents"): (
        "for serde=True of engines/local.py: see how flwr.superlink.grid.http_grid puts a message together"
    ),
    ("flwr.simulation", "run_simulation"): (
        "deprecated since 1.2x: when it is gone, engines/ray.py is to start `flwr run` on a local SuperLink, or to go"
    ),
    ("flwr.simulation.run_simulation", ""): (
        "engines/ray.py turns off telemetry in this module: see where flwr.supercore.telemetry.event is called now"
    ),
    ("flwr.app.exception", "AppExitException"): "see what strategies in flwr.serverapp.strategy raise to end a run",
    ("flwr.serverapp.strategy.strategy_utils", "aggregate_metricrecords"): (
        "the default of FedAvg's train_metrics_aggr_fn: compare with that attribute of a fresh FedAvg()"
    ),
    ("flwr.supercore.fab", "Fab"): "for types alone: see what the SuperNode's get_fab returns",
    ("flwr.cli.build", "build_fab_from_disk"): "see what `flwr build` calls; deployment/pins.py hashes its bytes",
    (
        "flwr.cli.config_utils",
        "get_fab_metadata",
    ): "name and version from a bundle's pyproject.toml; read them ourselves",
    ("flwr.supernode.start_client_internal", "http_request_response"): (
        "deployment/supernode.py wraps it to sign what is pinned: see where the SuperNode gets its connection from"
    ),
    ("flwr.supernode.cli.flower_supernode", "flower_supernode"): "the console script flower-supernode: see its target",
}

SIGNATURES = {
    ("flwr.simulation", "run_simulation"): ("server_app", "client_app", "num_supernodes", "backend_config"),
    ("flwr.supercore.run", "Run.create_empty"): ("run_id",),
    ("flwr.supercore.inflatable.inflatable_utils", "inflate_object_from_contents"): ("object_id", "object_contents"),
    ("flwr.app", "Message"): ("content", "error", "reply_to", "metadata"),
    ("flwr.app", "Context"): ("run_id", "node_id", "node_config", "state", "run_config"),
}


def touched(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Yield (module, name, line) of what is imported of Flower, also by a text that is a dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            yield from ((str(node.module), alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names if alias.name.split(".")[0] == "flwr")
        elif isinstance(node, ast.Tuple) and all(isinstance(part, ast.Constant) for part in node.elts):
            module, *name = [str(part.value) for part in node.elts if isinstance(part, ast.Constant)] or [""]
            if module.startswith("flwr."):
                yield module, ".".join(name), node.lineno
        elif isinstance(node, ast.Call):
            texts = [str(part.value) for part in node.args[:1] if isinstance(part, ast.Constant)]
            yield from ((text, "", node.lineno) for text in texts if re.fullmatch(r"flwr(\.\w+)+", text))


def unknown(source: Path) -> tuple[list[str], set[tuple[str, str]]]:
    """What is touched without being public or in the table, and what of the table is touched."""
    found: list[str] = []
    used: set[tuple[str, str]] = set()
    for path in sorted(source.rglob("*.py")):
        for module, name, line in touched(ast.parse(path.read_text(encoding="utf-8"))):
            if (module, name) in FRAGILE:
                used.add((module, name))
            elif module not in PUBLIC or (name and name not in import_module(module).__all__):
                found.append(
                    f"{path.relative_to(source)}:{line}: {module} {name} is not public in Flower; take a public name, "
                    "or give it a line in FRAGILE that says what to do when it goes"
                )
    return found, used


def test_every_name_that_is_not_public_has_a_line_here() -> None:
    found, used = unknown(SOURCE)
    assert not found, "\n".join(found)
    assert set(FRAGILE) == used, f"no longer touched, so take the line out: {set(FRAGILE) - used}"


@pytest.mark.parametrize(
    "text",
    [
        "from flwr.supercore.superexec import run\n",
        "import flwr.server\n",
        "def f():\n    from flwr.app import log\n",
        "import_module('flwr.server.server')\n",
        "HOOK = ('flwr.supernode.nodestate', 'name')\n",
    ],
)
def test_a_name_that_is_not_public_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(f"from flwr.app import Message\nlogging.getLogger('flwr')\n{text}")
    assert len(unknown(tmp_path)[0]) == 1


def advice(module: str, name: str, what: str) -> str:
    return f"flwr {version('flwr')}: {module}.{name} {what}. To do: {FRAGILE.get((module, name), 'see SIGNATURES')}"


@pytest.mark.parametrize(("module", "name"), FRAGILE, ids=lambda part: part)
def test_it_is_still_there(module: str, name: str) -> None:
    try:
        assert not name or hasattr(import_module(module), name), advice(module, name, "is gone")
    except ImportError:
        pytest.fail(advice(module, name, "is gone with its module"))


@pytest.mark.parametrize(("module", "name"), SIGNATURES, ids=lambda part: part)
def test_it_still_takes_what_we_give(module: str, name: str) -> None:
    called: Any = import_module(module)
    for part in name.split("."):
        called = getattr(called, part)
    missing = set(SIGNATURES[module, name]) - inspect.signature(called).parameters.keys()
    assert not missing, advice(module, name, f"takes no {missing}")


def test_messages_read_the_identity_that_we_set() -> None:
    """When red: find what `Message` reads instead, and set that in `engines.local.identity`."""
    from flwr.supercore.task_identity import TaskIdentity

    assert {"_run_id", "_node_id", "_task_id"} <= vars(TaskIdentity).keys()
    with identity(77):
        message = Message(RecordDict(), 5, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (77, 1)


def test_a_messages_id_is_where_we_write_it() -> None:
    """When red: see how Flower's own grids give a message its id, and do that in `engines.local`."""
    with identity(77):
        message = Message(RecordDict(), 5, "train")
    assert message.metadata.message_id == ""
    message.metadata.__dict__["_message_id"] = "given"
    assert message.metadata.message_id == "given"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "given"


def test_a_grid_still_wants_the_methods_that_ours_has() -> None:
    """When red: `engines.local.LocalGrid` lacks a method, or has one that nobody calls any longer."""
    wanted = {"create_message", "get_node_ids", "pull_messages", "push_messages", "run", "send_and_receive", "set_run"}
    assert Grid.__abstractmethods__ == wanted
    for name in wanted - {"run"}:
        theirs, ours = (inspect.signature(getattr(grid, name)).parameters for grid in (Grid, LocalGrid))
        assert list(theirs) == list(ours), name


def test_a_simulated_server_waits_where_we_can_stop_it() -> None:
    """When red: see what Flower's simulation gives a server app to wait on, and wrap that in `engines.ray`."""
    from flwr.superlink.grid import InMemoryGrid

    assert "pull_messages" in InMemoryGrid.send_and_receive.__code__.co_names


def test_the_simulation_tells_flower_by_the_name_that_we_replace() -> None:
    """When red: a simulation would call home; find the call, and replace that in `engines.ray`."""
    entry: Any = import_module("flwr.simulation.run_simulation")
    assert entry.event is import_module("flwr.supercore.telemetry").event
    assert "event" in entry.run_simulation.__code__.co_names


def test_arrays_hold_bytes_that_nobody_can_change() -> None:
    """When red: copies of messages share what a site may now change; copy it in `engines.local.copied`."""
    array = Array(np.zeros(3))
    assert type(array.data) is bytes
    copy = ArrayRecord({"w": array})["w"]
    assert copy is not array
    assert copy.data is array.data
