"""A site's side: its SuperNode, which runs pinned code alone, and with it a resident worker if there is one to be.

Every message of a run starts a process of Flower's at the site. It finds the site's data by its node configuration: the
path of `site.toml`, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedrag.errors import ConfigError
from fedrag.federated.deployment.pins import read_pins
from fedrag.federated.deployment.processes import Group, environment, free_port, split_address, supervise
from fedrag.federated.site import Site


def join(
    site_file: Path,
    *,
    server: str,
    keys: Path,
    pins: Sequence[str],
    port: int | None = None,
    worker: Path | None = None,
) -> int:
    """Take part until a signal comes or a part ends; return the exit status.

    Args:
        site_file: the site's `site.toml`.
        server: address of the server's fleet API.
        keys: the folder that `fedrag federate keys` wrote for this site: `ca.crt` and `site.key`.
        pins: hashes of the apps that may run here.
        port: port on the loopback between the SuperNode and the processes that it starts; `None` takes a free one.
        worker: a task file to keep built in a resident worker.

    Raises:
        ConfigError: a file is missing or malformed, or nothing is pinned.
    """
    site = Site.open(site_file)
    split_address(server)
    for name in ("ca.crt", "site.key"):
        if not (keys / name).is_file():
            raise ConfigError(
                f"{keys / name} is not there: take the folder that `fedrag federate keys` wrote for this site"
            )
    if not pins:
        raise ConfigError("nothing is pinned: read the app, and pass --pin with what `fedrag federate pin DIR` prints")
    home = site.state.absolute() / "flower"
    words = supernode(site_file, server=server, keys=keys, pins=sorted(read_pins(pins)), home=home, port=port)

    def start(groups: list[Group]) -> None:
        if worker is not None:
            module = "fedrag.federated.deployment.resident"
            groups.append(Group([sys.executable, "-m", module, str(worker), str(site_file)], env=environment()))
        groups.append(Group(words, env=environment(home)))

    return supervise(start)


def supernode(
    site_file: Path, *, server: str, keys: Path, pins: Sequence[str], home: Path, port: int | None = None
) -> list[str]:
    """The command that starts the SuperNode."""
    path = str(site_file.absolute())
    if "'" in path or "\n" in path:
        raise ConfigError(f"{path!r} holds a character that Flower's node configuration cannot; move it elsewhere")
    return [
        *(sys.executable, "-m", "fedrag.federated.deployment.supernode"),
        *("--home", str(home)),
        *(word for pin in pins for word in ("--pin", pin)),
        *("--superlink", server),
        *("--root-certificates", str(keys / "ca.crt")),
        *("--auth-supernode-private-key", str(keys / "site.key")),
        *("--host", "127.0.0.1", "--port", str(port or free_port())),
        *("--node-config", f"site='{path}'"),
    ]
