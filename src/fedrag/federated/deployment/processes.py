"""Processes that outlive nobody: started in groups, watched, and stopped whole.

A SuperLink or SuperNode starts further processes, one for each message and run, and some of them leave its process
group. Stopping one here means: a polite signal to the group, a while to end, then the rest of the group and of its
descendants by force.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from fedrag.errors import ConfigError, TrainingError

GRACE = 15.0  # seconds between the polite signal and force


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def listens(host: str, port: int, *, seconds: float = 1.0) -> bool:
    """Whether somebody takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[::1]:port`. Raises `ConfigError` for anything else."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536) or "/" in host:
        raise ConfigError(f"{address!r} is no address: wanted is host:port, without https:// before it")
    return host.removeprefix("[").removesuffix("]"), int(port)


def environment(home: Path | None = None) -> dict[str, str]:
    """This process's environment, with Flower quiet about itself and this installation's commands found first."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        **({"FLWR_HOME": str(home.absolute())} if home else {}),
    }


def command(name: str) -> str:
    """The path of a command of this installation. Raises `ConfigError` where it is absent."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ConfigError(f"{path} is not there: install the extra, pip install 'fedrag[federated]'")
    return str(path)


class Group:
    """A process in a session of its own, and everything that it starts."""

    def __init__(
        self, words: Sequence[str], *, env: Mapping[str, str], output: IO[bytes] | None = None, cwd: Path | None = None
    ) -> None:
        self.name = Path(words[0]).name
        self._process = subprocess.Popen(
            words,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def ended(self) -> int | None:
        """Its exit status, or `None` while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait for its end; `None` when it still runs after that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, *, grace: float = GRACE) -> None:
        """End it and all that it started; returns when nothing of it is left."""
        family = descendants(self.pid)
        _signal_group(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            family |= descendants(self.pid)
            if self.ended() is not None and not any(map(_alive, family)):
                break
            time.sleep(0.05)
        _signal_group(self.pid, signal.SIGKILL)
        for process in filter(_alive, family):
            with suppress(ProcessLookupError):
                os.kill(process[0], signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + grace
        while any(map(_alive, family)) and time.monotonic() < deadline:  # a kill takes effect a moment later
            time.sleep(0.01)


def wait_until_listening(group: Group, host: str, port: int, *, seconds: float) -> None:
    """Wait for the group to take connections. Raises `TrainingError` when it ends before, or takes longer."""
    deadline = time.monotonic() + seconds
    while not listens(host, port):
        if (status := group.ended()) is not None:
            raise TrainingError(
                f"{group.name} ended with status {status} before it listened on {host}:{port}; see its log"
            )
        if time.monotonic() > deadline:
            raise TrainingError(f"{group.name} does not listen on {host}:{port} after {seconds:.0f} s; see its log")
        time.sleep(0.1)


def supervise(start: Callable[[list[Group]], None]) -> int:
    """Let `start` begin groups, and run until one of them ends, or until Ctrl-C or SIGTERM; then stop all.

    Return the exit status of the one that ended, or 0 after a signal.
    """
    groups: list[Group] = []
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        start(groups)
        while True:
            for group in groups:
                if (status := group.ended()) is not None:
                    return status if status > 0 else 1 if status else 0
            time.sleep(0.2)
    except KeyboardInterrupt:
        return 0
    finally:
        for number in before:  # a second signal must not leave processes behind
            signal.signal(number, signal.SIG_IGN)
        for group in reversed(groups):
            group.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def descendants(pid: int) -> set[tuple[int, str]]:
    """The processes that `pid` started, and theirs, each with the time of its birth; empty where there is no /proc."""
    children: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if (known := _stat(int(folder.name))) and known[0] != "Z":
            children.setdefault(int(known[1]), []).append((int(folder.name), known[2]))
    found: set[tuple[int, str]] = set()
    fresh = [pid]
    while fresh:
        near = [child for parent in fresh for child in children.get(parent, []) if child not in found]
        found.update(near)
        fresh = [child for child, _ in near]
    return found


def _stat(pid: int) -> tuple[str, str, str] | None:
    """State, parent and birth of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a name may hold spaces and brackets
    return fields[0], fields[1], fields[19]


def _alive(process: tuple[int, str]) -> bool:
    known = _stat(process[0])
    return known is not None and known[0] != "Z" and known[2] == process[1]


def _signal_group(pid: int, number: signal.Signals) -> None:
    # it may have ended; macOS says "not permitted" for a group of zombies
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
