"""A resident worker: one process at a site that keeps the trainer built between messages.

Flower starts a process for every message. Each would load torch and the base model anew, which takes longer than many a
round. With a worker, that process only passes the request on over a Unix socket, and loads neither.

    fedrag federate worker task.py --site site.toml

The socket is in the site's state folder and its owner's alone. A message on it is its length (8 bytes, little-endian),
then safetensors with a header of texts: what a file of a state looks like, and no pickle. One request is worked on at a
time, others wait. A worker that dies closes its socket, so the asking side notices at once and says "worker".
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

from fedrag.errors import ConfigError, InputError
from fedrag.federated.client import Reply, Request
from fedrag.federated.exchange import Packs, from_bytes, to_bytes

if TYPE_CHECKING:
    from fedrag.federated.site import Site

NAME = "worker.sock"
LONGEST = 103  # bytes of a socket's path that every system takes
LARGEST = 1 << 40  # a length beyond is no message of ours
SEND = 60.0  # seconds without progress while a message is passed over
_log = logging.getLogger("fedrag.site")


class Answering(Protocol):
    """What a worker keeps: `Participant` is one."""

    def answer(self, request: Request) -> Reply:
        """Answer a request; what fails is in the reply."""
        ...


class Task(Protocol):
    """What is answered for: `FederatedTask` is one."""

    def participant(self, site: Site) -> Answering:
        """What answers at a site."""
        ...


def answer_at(task: Task, site: Site, request: Request) -> Reply:
    """Answer at a site: through its worker where there is one, else here, in this process."""
    try:
        path = site.state / NAME
        resident = path.exists()
    except OSError:  # there is no such folder to be had; the participant says so in a way that may leave the site
        return task.participant(site).answer(request)
    if not resident:
        return task.participant(site).answer(request)
    try:
        return ask(path, request)
    except (OSError, InputError) as error:
        _log.error("the worker of site %s does not answer (%s): start it again, or remove %s", site.name, error, path)
        return Reply({"site": site.name, "fault": "worker", "class": type(error).__name__})


def ask(path: Path, request: Request, *, seconds: float | None = None) -> Reply:
    """Pass a request on and wait for the reply.

    Args:
        path: the worker's socket.
        request: what the site is asked.
        seconds: to wait for the reply; `None` waits as long as the worker lives.

    Raises:
        OSError: nobody listens, the worker died over it, or the time is over (`TimeoutError`).
        InputError: what came back is no reply.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(SEND)
        line.connect(str(path))
        _send(line, {"kind": request.kind, "config": dict(request.config)}, request.state)
        line.settimeout(seconds)
        told, state = _receive(line)
    return Reply(_table(told, "config"), _table(told, "metrics"), state)


def serve(participant: Answering, path: Path, *, ready: Callable[[], None] = lambda: None) -> None:
    """Answer requests at this socket until SIGTERM or Ctrl-C, one after another.

    Raises:
        ConfigError: the path is too long for a socket, or another worker serves there.
    """
    if len(os.fsencode(path)) > LONGEST:
        raise ConfigError(
            f"{path} is longer than the {LONGEST} bytes of a socket's path: give the site a shorter `state`"
        )
    with socket.socket(socket.AF_UNIX) as listener:
        _take(listener, path)
        before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            ready()
            while True:
                line, _ = listener.accept()
                with line:
                    _serve_one(participant, line)
        except SystemExit:
            _log.info("worker stopped")
        finally:
            path.unlink(missing_ok=True)
            for number, handler in before.items():
                signal.signal(number, handler)


def _serve_one(participant: Answering, line: socket.socket) -> None:
    line.settimeout(SEND)
    try:
        told, state = _receive(line)
        request = Request(str(told.get("kind", "")), _table(told, "config"), state)
    except (OSError, InputError) as error:
        _log.error("a request that cannot be read: %s", error)
        return
    reply = participant.answer(request)
    line.settimeout(SEND)
    try:
        _send(line, {"config": dict(reply.config), "metrics": dict(reply.metrics)}, reply.state)
    except OSError as error:  # the process that asked has gone; the next one is served all the same
        _log.error("the reply could not be passed on: %s", error)


def _take(listener: socket.socket, path: Path) -> None:
    """Listen at the path; what a dead worker left there is removed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(str(path))
        raise ConfigError(f"a worker serves at {path} already: stop it first, or give this site another `state`")
    path.unlink(missing_ok=True)
    earlier = os.umask(0o177)  # the socket is made with mode 0600: at no time can others connect
    try:
        listener.bind(str(path))
    finally:
        os.umask(earlier)
    listener.listen(16)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _send(line: socket.socket, told: dict[str, Any], state: Packs) -> None:
    data = to_bytes(state, {name: json.dumps(value) for name, value in told.items()})
    line.sendall(len(data).to_bytes(8, "little"))
    line.sendall(data)


def _receive(line: socket.socket) -> tuple[dict[str, Any], Packs]:
    length = int.from_bytes(_exactly(line, 8), "little")
    if length > LARGEST:
        raise InputError(f"a message of {length} bytes is announced; the other side is no worker of fedrag's")
    state, header = from_bytes(bytes(_exactly(line, length)))
    try:
        return {name: json.loads(text) for name, text in header.items()}, state
    except json.JSONDecodeError as error:
        raise InputError(f"the header of a message is no JSON: {error}") from None


def _exactly(line: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    got = 0
    while got < length:
        piece = line.recv_into(view[got:], min(length - got, 1 << 20))
        if not piece:
            raise ConnectionResetError(f"the other side ended after {got} of {length} bytes")
        got += piece
    return data


def _table(told: dict[str, Any], name: str) -> dict[str, Any]:
    table = told.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{name} of a message is {type(table).__name__}, wanted is a table")
    return cast(dict[str, Any], table)
