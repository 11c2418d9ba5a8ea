"""Submit a task to a running SuperLink, and see what became of it.

Flower's own command does it, in a process of its own: `flwr run`, `flwr list`, `flwr log`, `flwr supernode register`.
Where to is the name of a connection in Flower's configuration (`flwr config list`), or an address together with the
certificate authority; the latter gets a configuration of its own, and the user's stays as it is.

    with connected("127.0.0.1:8001", ca=Path("keys/server/ca.crt")) as superlink:
        run = superlink.submit(Path("app"))
        superlink.finished(run.id, seconds=3600)
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fedrag.errors import ConfigError, InputError, TrainingError
from fedrag.federated.deployment.processes import command, environment, split_address

OWN = "deployment"  # name of the connection in a configuration of our own
SECONDS = 120.0  # a call of Flower's command takes one; more on a busy machine


@dataclass(frozen=True, slots=True)
class Run:
    """A run on a SuperLink.

    Attributes:
        id: Flower's.
        app: publisher and name.
        hash: SHA-256 of the app, as pinned; the first 8 digits alone just after submitting.
        status: "pending", "starting", "running", "finished:completed", "finished:failed" or "finished:stopped".
        seconds: since it began, or that it took.
        details: Flower's words on a failure.
    """

    id: str
    app: str
    hash: str
    status: str
    seconds: float = 0.0
    details: str = ""

    @property
    def active(self) -> bool:
        """Whether it has not finished."""
        return not self.status.startswith("finished")


class SuperLink:
    """A running SuperLink, spoken to through Flower's command."""

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self.name = name
        self._env = dict(env)

    def submit(self, app: Path, *, resume: bool = False) -> Run:
        """Start a run of an app's folder, which goes on from the plan's checkpoint if it is to resume.

        Raises `InputError` with Flower's reason when it is refused.
        """
        told = self._call("run", str(app), self.name, *(("--run-config", "resume=true") if resume else ()))
        return Run(str(told["run-id"]), str(told["fab-id"]), str(told["fab-hash"]), "pending")

    def runs(self) -> list[Run]:
        """All runs that the SuperLink knows, as Flower orders them: the latest first."""
        return [
            Run(
                str(run["run-id"]),
                str(run["fab-id"]),
                str(run["fab-hash"]),
                str(run["status"]),
                float(run["elapsed"]),
                str(run["status-details"]),
            )
            for run in self._call("list", self.name)["runs"]
        ]

    def run(self, id: str) -> Run:
        """One run. Raises `InputError` for an id that the SuperLink does not know."""
        known = {run.id: run for run in self.runs()}
        if id not in known:
            raise InputError(f"the SuperLink knows no run {id}; it knows {', '.join(known) or 'none at all'}")
        return known[id]

    def finished(self, id: str, *, seconds: float) -> Run:
        """Wait until a run has finished, however it did. Raises `TrainingError` after that time."""
        deadline, pause = time.monotonic() + seconds, 1.0
        while (run := self.run(id)).active:
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"run {id} is {run.status} after {seconds:.0f} s; it goes on, and `status` tells more"
                )
            time.sleep(pause)
            pause = min(pause + 1.0, 10.0)  # each look starts a process of Flower's
        return run

    def stop(self, id: str) -> None:
        """Stop a run."""
        self._call("stop", id, self.name)

    def log(self, id: str) -> str:
        """What the server's half of a run has printed so far."""
        done = self._run("log", id, self.name, "--show")
        if done.returncode:
            raise InputError(f"the log of run {id} is not to be had: {_reason(done)}")
        return done.stdout

    def follow(self, id: str) -> int:
        """Print that log as it is written, until the run ends; return the exit status of Flower's command."""
        return subprocess.call([command("flwr"), "log", id, self.name, "--stream"], env=self._env)

    def register(self, key: Path, *, name: str) -> bool:
        """Let the site of this public key in; `False` when it was in already."""
        words = ("supernode", "register", str(key), self.name, "--name", name)
        try:
            self._call(*words)
        except InputError as error:
            if "already" in str(error):
                return False
            raise
        return True

    def _call(self, *words: str) -> dict[str, Any]:
        done = self._run(*words, "--format", "json")
        try:
            told: Any = json.loads(done.stdout)
        except json.JSONDecodeError:
            told = {}
        if done.returncode or not isinstance(told, dict) or not cast(dict[str, Any], told).get("success"):
            raise InputError(f"flwr {words[0]} failed at the SuperLink {self.name!r}: {_reason(done)}")
        return cast(dict[str, Any], told)

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [command("flwr"), *words],
                env=self._env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise TrainingError(
                f"flwr {words[0]} gave no answer within {SECONDS:.0f} s: is the SuperLink up? `fedrag federate doctor "
                "--server HOST:PORT` tells"
            ) from None


@contextmanager
def connected(where: str, *, ca: Path | None = None) -> Generator[SuperLink]:
    """The SuperLink of that name in Flower's configuration, or at that address.

    Args:
        where: name, or `host:port` of the SuperLink's control API.
        ca: certificate authority of the server, for an address; `None`: one that this system trusts.
    """
    if ":" not in where:
        if ca is not None:
            raise ConfigError(
                f"{where!r} is a name in Flower's configuration, which holds its own authority; omit --ca"
            )
        yield SuperLink(where, environment())
        return
    split_address(where)
    if ca is not None and not ca.is_file():
        raise ConfigError(f"{ca} is not there: give the ca.crt that `fedrag federate keys` wrote")
    with tempfile.TemporaryDirectory(prefix="fedrag-flower-") as folder:
        lines = ["[superlink]", f'default = "{OWN}"', f"[superlink.{OWN}]", f"address = {json.dumps(where)}"]
        if ca is not None:
            lines.append(f"root-certificates = {json.dumps(str(ca.absolute()))}")
        (Path(folder) / "config.toml").write_text("\n".join(lines), encoding="utf-8")
        yield SuperLink(OWN, environment(Path(folder)))


def resumable(runs: Sequence[Run], hash: str) -> Run | None:
    """The run that a new one of the same app would go on from: its latest. Raises `InputError` while one is active."""
    same = [run for run in runs if run.hash == hash]
    if active := [run for run in same if run.active]:
        raise InputError(
            f"run {active[0].id} of this app is {active[0].status}: wait for it, or `fedrag federate stop` it"
        )
    return same[0] if same else None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Flower's reason for a failure, on one line."""
    try:
        text = str(json.loads(done.stdout)["error-message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        text = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
    return " ".join(text.split())
