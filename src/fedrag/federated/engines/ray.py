"""A whole federation on this machine or a Ray cluster: Flower's simulation, for many sites and several cores or GPUs.

`run_simulation` is deprecated, yet the only way into Flower's simulation from Python: nothing else here depends on it,
so that its end is the end of this one file. What it leaves to its caller is done here:

- It starts the server app in a thread, forgets a `SystemExit` or `KeyboardInterrupt` of that thread, and lets it wait
  for ever when Ray cannot start. Here whatever the server app raises comes out, and a dead engine stops it.
- It puts an actor whose process died back among the idle ones, where it fails whatever it is given, and since it fails
  at once, it is given most. Here such an actor is started anew and tries its message once more, and others wait.
- It sends the text of a site's exception to the server. Here an error reply has the exception's class, as in `local`.
- Ray starts here and not in Flower: Flower would change this process's `PYTHONPATH`.

The client app travels by cloudpickle: closures may be sent, also those of a script, a notebook, or a file that was
loaded by its path. Sites know themselves by `partition-id`, from 0, in the node's configuration.
"""

from __future__ import annotations

import builtins
import logging
import math
import os
import pickle
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from secrets import randbits
from types import ModuleType
from typing import Any, cast

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedrag.errors import InputError, TrainingError
from fedrag.federated.engines.local import answer, identity
from fedrag.optional import require


def run_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    nodes: int,
    *,
    client_resources: Mapping[str, int | float] | None = None,
    verbose: bool = False,
) -> None:
    """Run both apps to the end, each message to a site in a process of Ray's.

    Args:
        server_app: runs in a thread of this process. What it raises comes out as it is.
        client_app: runs in Ray's processes, as many as `client_resources` allow.
        nodes: number of sites.
        client_resources: what Ray sets aside for a site at work, `{"num_cpus": 1}` by default. A site sees a GPU only
            with a share of one, such as `"num_gpus": 0.25`.
        verbose: show what the sites print and log, tracebacks of their errors too.

    A Ray that this process is connected to already, a cluster say, is used; in any case Ray is shut down afterwards.

    Raises `MissingExtraError` without Ray, `InputError` for a client app that cannot be sent, `TrainingError` when Ray
    cannot run the sites or another run is going on in this process.
    """
    require("ray", extra="simulation")
    if nodes < 1:
        raise InputError(f"nodes={nodes}; a simulation wants one site at least")
    # Flower hands these to Ray as an actor's options, so restarts can be asked for too; without a retry, all that is
    # sent while an actor restarts would fail
    resources = {"num_cpus": 1, **(client_resources or {}), "max_restarts": -1, "max_task_retries": 1}
    if not resources["num_cpus"] > 0:
        raise InputError(f"client_resources sets num_cpus={resources['num_cpus']}; a site wants more than none")
    stop = TrainingError("the simulation has stopped")
    stopped, begun, done = threading.Event(), threading.Event(), threading.Event()
    raised: list[BaseException] = []
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        begun.set()
        _stoppable(grid, stopped, stop)
        try:
            server_app(grid, context)
        except BaseException as error:  # it is raised again, in the thread of the caller
            raised.append(error)
        finally:
            done.set()

    crash: RuntimeError | None = None
    with identity(randbits(62)), _quiet(), _sendable(client_app), _ray(nodes, resources, verbose):
        try:
            _simulate(watched, cast(ClientApp, partial(answer, client_app)), nodes, resources)
        except RuntimeError as error:
            crash = error
        finally:
            stopped.set()
            if begun.is_set():
                done.wait(10)  # seconds: a server app that never looks at its grid cannot be stopped
    if raised and raised[0] is not stop:
        raise raised[0]
    if crash is not None:
        raise TrainingError(
            f"Ray cannot run sites with {resources['num_cpus']} CPUs and {resources.get('num_gpus', 0)} GPUs each: "
            f"{_root(crash)}; ask for less in client_resources, or run in this process"
        ) from crash


def _simulate(server_app: ServerApp, client_app: ClientApp, nodes: int, resources: dict[str, int | float]) -> None:
    """Flower's entry, alone."""
    from flwr.simulation import run_simulation

    backend = cast(Any, {"client_resources": resources})
    run_simulation(server_app, client_app, nodes, backend_config=backend)


def _stoppable(grid: Grid, stopped: threading.Event, stop: TrainingError) -> None:
    """Let what a server app waits on raise once the engine behind it is gone."""

    def unless_stopped(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if stopped.is_set():
                raise stop
            return method(*args)

        return call

    for name in ("get_node_ids", "pull_messages"):  # also `send_and_receive` waits on the second
        setattr(grid, name, unless_stopped(getattr(grid, name)))


@contextmanager
def _ray(nodes: int, resources: Mapping[str, int | float], verbose: bool) -> Generator[None]:
    """Ray, without a dashboard, with no more processes than sites; then none, and nothing of it in this process.

    It sets environment variables, and puts a function of its own in the place of `print`.
    """
    import ray

    said = builtins.print
    before = {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "PYTHON"))}
    wanted = math.ceil(nodes * resources["num_cpus"])
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        if not ray.is_initialized():
            with warnings.catch_warnings():
                # that sites without a share of a GPU see none is what we want; Ray asks to say so by a variable
                warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
                ray.init(
                    num_cpus=wanted if 1 <= wanted < (os.cpu_count() or 1) else None,
                    include_dashboard=False,
                    log_to_driver=verbose,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": {"PYTHONPATH": paths, "FLWR_TELEMETRY_ENABLED": "0"}},
                )
        yield
    finally:
        ray.shutdown()
        builtins.print = said
        for name in [name for name in os.environ if name.startswith(("RAY_", "PYTHON")) and name not in before]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _sendable(client_app: ClientApp) -> Generator[None]:
    """Send functions of modules that another process could not import as code; raise `InputError` where that fails."""
    import ray.cloudpickle

    cloudpickle = cast(Any, ray.cloudpickle)
    modules = [module for name, module in list(sys.modules.items()) if _unimportable(name, module)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        cloudpickle.dumps(client_app)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise InputError(
            f"the client app cannot be sent to another process: {error}; what cannot travel (locks, open files, "
            "connections) has to be opened at the site, inside the function that uses it"
        ) from error
    else:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _unimportable(name: str, module: ModuleType | None) -> bool:
    """Whether a file of the user's was loaded under a name that no import in another process would find."""
    known: dict[str, Any] = getattr(module, "__dict__", {})  # attributes of lazy modules are not asked for: they wake
    file = known.get("__file__")
    if name in ("__main__", "__mp_main__") or known.get("__name__") != name or not file:
        return False  # cloudpickle knows what to do with a script
    if not os.path.isabs(file) or any(Path(file).is_relative_to(library) for library in _LIBRARIES):
        return False
    spec = _found(name)
    return spec is None or os.path.realpath(spec.origin or "") != os.path.realpath(file)


def _found(name: str) -> ModuleSpec | None:
    """What an import of `name` would find, were it not imported already."""
    path: Any = None
    if package := name.rpartition(".")[0]:
        if (above := _found(package)) is None:
            return None
        path = above.submodule_search_locations
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return next((spec for finder in finders if (spec := finder.find_spec(name, path)) is not None), None)


_LIBRARIES = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}


@contextmanager
def _quiet() -> Generator[None]:
    """Without Flower's telemetry, its word that the entry is deprecated, and tracebacks of what is told otherwise."""
    # `flwr.simulation.run_simulation` is the function; the module of that name is found by import alone
    entry: Any = import_module("flwr.simulation.run_simulation")
    logger, event = logging.getLogger("flwr"), entry.event
    propagates = logger.propagate  # Flower turns it off in a notebook, and leaves it so

    def wanted(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not text.startswith("Traceback") and "`run_simulation`" not in text

    def unsent(*_: Any, **__: Any) -> Future[str]:
        return Future()

    entry.event = unsent
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
        logger.propagate, entry.event = propagates, event


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
