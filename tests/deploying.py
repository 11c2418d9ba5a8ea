"""A server and sites as real processes, with TLS, keys, pins and the gate: what the tests of deployments share.

A `Deployment` is a folder: the app, the keys, a log per process, and a folder per site. Leaving it stops every process
that it started, and demands that none is left.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedrag.federated.deployment import keys, pins, processes
from fedrag.federated.deployment.submission import SuperLink, connected

FEDERATE = [sys.executable, "-c", "from fedrag.cli import main; main()", "federate"]


class Deployment:
    """Folders, addresses, logs.

    Args:
        folder: empty; everything is in it.
        app: the folder that is submitted; every site pins it as it is now.
        sites: names that get a key.
    """

    def __init__(self, folder: Path, app: Path, *, sites: Sequence[str] = ("a", "b")) -> None:
        self.folder = folder
        self.app = app
        self.keys = folder / "keys"
        self.home = folder / "link"
        self.gate, self.control, self.inside = (processes.free_port() for _ in range(3))
        self.groups: list[processes.Group] = []
        keys.write_keys(self.keys, server=["localhost"], sites=list(sites))
        self.pin = pins.bundle(app).hash

    def start(self, name: str, *words: str) -> processes.Group:
        """A command of `fedrag federate`, which writes to the log of this name."""
        with self.log_of(name).open("ab") as log:
            group = processes.Group([*FEDERATE, *words], env=processes.environment(), output=log, cwd=self.folder)
        self.groups.append(group)
        return group

    def serve(self) -> processes.Group:
        """Start the server, at the same addresses each time; return when sites can come."""
        ports = ["--host", "127.0.0.1", "--port", str(self.gate), "--control-port", str(self.control)]
        before = self.log_of("server").read_text().count("ready") if self.log_of("server").exists() else 0
        group = self.start("server", "server", "--keys", str(self.keys / "server"), "--home", str(self.home), *ports)
        self.await_text("server", "ready", times=before + 1)
        return group

    def start_site(
        self, name: str, *, keys: Path | None = None, settings: str = "", more: Sequence[str] = ()
    ) -> processes.Group:
        """Start a site's SuperNode; `settings` is more text for its `site.toml`, which is written once."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        if not (file := place / "site.toml").exists():
            file.write_text(f'name = "{name}"\n{settings}')
        where = ["--server", f"localhost:{self.gate}", "--keys", str(keys or self.keys / name), "--pin", self.pin]
        return self.start(name, "site", str(file), *where, *more)

    def joined(self, *names: str) -> None:
        """Wait until the sites of these names are in."""
        for name in names:
            self.await_text(name, "SuperNode ID")

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def await_text(self, name: str, text: str, seconds: float = 90, *, times: int = 1) -> None:
        deadline = time.monotonic() + seconds
        while self.log_of(name).read_text().count(text) < times:
            assert time.monotonic() < deadline, self.log_of(name).read_text()
            time.sleep(0.1)

    def operator(self):
        """The SuperLink's control API, as its operator reaches it."""
        return connected(f"127.0.0.1:{self.control}", ca=self.keys / "server" / "ca.crt")

    def visitor(self):
        """Who holds what a site holds, at the address that a site has."""
        return connected(f"localhost:{self.gate}", ca=self.keys / "a" / "ca.crt")

    def command(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """`fedrag federate NAME 127.0.0.1:PORT ...` of the operator, to its end."""
        where = [f"127.0.0.1:{self.control}", *words, "--ca", str(self.keys / "server" / "ca.crt")]
        return subprocess.run(
            [*FEDERATE, name, *where], env=processes.environment(), capture_output=True, text=True, timeout=240
        )

    def left_over(self) -> list[str]:
        """Command lines of processes that still speak of this deployment."""
        found: list[str] = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in line or str(self.control) in line:
                found.append(line)
        return found


def ended(link: SuperLink, id: str, seconds: float = 180) -> str:
    """Wait for a run's end, and return its status and its log."""
    run = link.finished(id, seconds=seconds)
    return f"{run.status} {run.details}\n{link.log(id)}"


@contextmanager
def deployed(folder: Path, app: Path, *, sites: Sequence[str] = ("a", "b")) -> Iterator[Deployment]:
    """A deployment without processes yet, which leaves none behind."""
    made = Deployment(folder, app, sites=sites)
    try:
        yield made
    finally:
        for group in reversed(made.groups):
            group.stop()
        assert made.left_over() == []
