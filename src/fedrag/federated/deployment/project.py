"""The folder that is submitted: the task file, and a `pyproject.toml` that tells Flower where its two apps are.

    fedrag federate init task.py --to app

Only what `fab-include` lists is bundled, so that a site's files beside it neither travel nor change the pin. Flower
looks for the task without running the file, and sees a plain assignment only: `task = FederatedTask(build, plan)`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedrag import __version__
from fedrag.errors import ConfigError, InputError

if TYPE_CHECKING:
    from fedrag.federated.task import FederatedTask

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}")

PYPROJECT = """\
# A FedRAG task as a Flower app. `fedrag federate pin .` prints its hash, `fedrag federate submit` starts it.
[project]
name = "{name}"
version = "1.0.0"
description = "A FedRAG task"
license = "LicenseRef-None"
dependencies = ["fedrag[federated]=={version}"]  # for the record: sites install nothing at run time

[tool.flwr.app]
publisher = "{publisher}"
fab-include = ["{module}.py"]  # all that travels beside this file; add the modules that the task imports

[tool.flwr.app.components]
serverapp = "{module}:{task}.server_app"
clientapp = "{module}:{task}.client_app"

[tool.flwr.app.config]
resume = false  # `fedrag federate resume` sets it for a run
"""

SITE = """\
# One site: copy this file to its machine and fill it in. Nothing in it travels but the name.
# Paths are relative to this file.
name = "{site}"            # letters, digits, _ . and -; the key of this site has the same name
# store = "store"          # its documents, for site.store(): what `MemoryStore.save` wrote
state = "state"            # what it keeps between rounds; made when needed, for its owner alone

[examples]
train = "train.jsonl"      # site.examples("train"); json, csv and parquet do as well

# [settings]               # whatever build(site) asks for: site.settings["device"]
# device = "cuda"
"""


def init(task_file: Path, to: Path, *, name: str | None = None, publisher: str = "fedrag", force: bool = False) -> Path:
    """Write the app of a task into a folder; return the folder.

    Args:
        task_file: the file that assigns the task.
        to: folder to write; may be the file's own.
        name: of the app: letters, digits and hyphens. By default, the folder's.
        publisher: of the app.
        force: overwrite what is there.

    Raises:
        InputError: no task in the file, or files that would be overwritten.
    """
    task = find_task(task_file)
    given = name
    name = name or re.sub(r"[^A-Za-z0-9]+", "-", to.resolve().name).strip("-")
    for what, value in (("name", name), ("publisher", publisher)):
        if not _NAME.fullmatch(value):
            hint = "" if given or what == "publisher" else "; the folder's does not do, so give one with --name"
            raise InputError(
                f"{value!r} is no {what} for an app: letters, digits and hyphens, the first a letter{hint}"
            )
    texts = {
        to / "pyproject.toml": PYPROJECT.format(
            name=name,
            publisher=publisher,
            module=task_file.stem,
            task=task,
            version=__version__,
        ),
        to / "site.toml": SITE.format(site="north"),
    }
    if task_file.resolve() != (to / task_file.name).resolve():
        texts[to / task_file.name] = task_file.read_text(encoding="utf-8")
    if not force and (there := [path for path in texts if path.exists()]):
        raise InputError(f"{there[0]} is there already: name another folder with --to, or overwrite with --force")
    to.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return to


def find_task(task_file: Path) -> str:
    """The name that a file assigns its `FederatedTask` to, found as Flower finds it: without running the file."""
    if not task_file.stem.isidentifier() or task_file.suffix != ".py":
        raise InputError(f"{task_file.name!r} cannot be imported: wanted is a file like task.py")
    try:
        body = ast.parse(task_file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{task_file} cannot be read as Python: {error}") from error
    names = [
        node.targets[0].id
        for node in body
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and _called(node.value.func) == "FederatedTask"
    ]
    if len(names) != 1:
        found = f"{len(names)} tasks ({', '.join(names)})" if names else "no task"
        raise InputError(
            f"{task_file} assigns {found}, wanted is one line like task = FederatedTask(build, Plan(rounds=10)): at "
            "the top level, one plain name, without an annotation"
        )
    return names[0]


def load_task(task_file: Path) -> FederatedTask:
    """Run a task file and return its task. Raises `ConfigError` with what went wrong in it."""
    from fedrag.federated.task import FederatedTask

    name = find_task(task_file)
    spec = importlib.util.spec_from_file_location(task_file.stem, task_file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{task_file} cannot be imported: wanted is a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[task_file.stem] = module  # so that classes of the file can be found by name
    sys.path.insert(0, str(task_file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ConfigError(f"{task_file} imports what is not installed here: {error}") from error
    finally:
        sys.path.pop(0)
    task = getattr(module, name)
    if not isinstance(task, FederatedTask):
        raise ConfigError(f"{name} of {task_file} is a {type(task).__name__}, wanted is fedrag.federated.FederatedTask")
    return task


def _called(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
