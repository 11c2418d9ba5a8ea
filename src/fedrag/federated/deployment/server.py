"""The server's side: a SuperLink behind the gate, which knows the sites' keys.

The SuperLink listens on the loopback; its control API is there for the operator, on this machine or through an SSH
tunnel. The gate listens where sites come from. Keys are registered before the gate opens, for a site that comes earlier
is turned away and ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from fedrag.errors import ConfigError
from fedrag.federated.deployment.processes import Group, command, environment, listens, supervise, wait_until_listening
from fedrag.federated.deployment.submission import connected

START = 120.0  # seconds that a part may take to listen: imports are slow on a busy machine


def serve(
    keys: Path,
    *,
    host: str = "0.0.0.0",
    port: int = 8000,
    control_port: int = 8001,
    home: Path,
    gate: bool = True,
    say: Callable[[str], None] = print,
) -> int:
    """Serve until a signal comes or a part ends; return the exit status.

    Args:
        keys: folder `server` that `fedrag federate keys` wrote.
        host: address of this machine that the gate listens on.
        port: port for sites.
        control_port: port for the operator, on the loopback.
        home: folder of the SuperLink's own: its database of runs and registered sites, and unpacked apps.
        gate: `False` leaves it out, for a proxy that is there already and keeps the same rule.
        say: told of each step.

    Raises:
        ConfigError: a file is missing, or a port is taken.
    """
    for name in ("ca.crt", "server.crt", "server.key"):
        if not (keys / name).is_file():
            raise ConfigError(f"{keys / name} is not there: write it with `fedrag federate keys --server HOST`")
    taken = [p for h, p in (("127.0.0.1", control_port), *(((host, port),) if gate else ())) if listens(_near(h), p)]
    if taken:
        raise ConfigError(f"port {taken[0]} is taken; name another with --port or --control-port")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    control = f"127.0.0.1:{control_port}"

    def start(groups: list[Group]) -> None:
        groups.append(Group(superlink(keys, home=home, port=control_port), env=environment(home)))
        wait_until_listening(groups[0], "127.0.0.1", control_port, seconds=START)
        say(f"control API, for the operator: {control}")
        with connected(control, ca=keys / "ca.crt") as link:
            for key in sorted((keys / "sites").glob("*.pub")):
                new = link.register(key, name=key.stem)
                say(f"site {key.stem}: {'registered' if new else 'is registered'}")
        if gate:
            words = ["--listen", _address(host, port), "--upstream", control, "--keys", str(keys)]
            module = "fedrag.federated.deployment.gate"
            groups.append(Group([sys.executable, "-m", module, *words], env=environment(home)))
            wait_until_listening(groups[1], _near(host), port, seconds=START)
            say(f"fleet API, for sites: {_address(host, port)}")
        say("ready")

    return supervise(start)


def superlink(keys: Path, *, home: Path, port: int) -> list[str]:
    """The command that starts the SuperLink: TLS, known sites alone, nothing installed at run time."""
    return [
        command("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(keys / "ca.crt")),
        *("--ssl-certfile", str(keys / "server.crt")),
        *("--ssl-keyfile", str(keys / "server.key")),
        *("--database", str((home / "superlink.db").absolute())),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def _near(host: str) -> str:
    """An address that reaches a listener on `host` from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
