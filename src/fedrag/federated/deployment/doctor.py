"""What would keep a deployment from working, found before it is started: one line each.

Every check looks at the thing itself: the file's mode, the certificate's names, a real connection. Only what was named
is checked, so that the same command serves the server, a site and the operator.
"""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import stat
import sys
import tomllib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from fedrag.errors import FedRAGError
from fedrag.federated.deployment.keys import Certificate, read_certificate
from fedrag.federated.deployment.processes import command, listens, split_address

FLOWER = "1.41"  # what the private parts that pinning and the gate rely on were read in
SOON = timedelta(days=30)
SECRETS = ("ca.key", "server.key", "site.key")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warn", "FAIL"]
    text: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.text}"


def examine(
    *,
    app: Path | None = None,
    site: Path | None = None,
    keys: Path | None = None,
    server: str | None = None,
    ports: Iterable[int] = (),
) -> Generator[Finding]:
    """Check this installation, and of the rest what is named.

    Args:
        app: folder of the app; its task file is run.
        site: a `site.toml`.
        keys: a folder that `fedrag federate keys` wrote, for the server or a site.
        server: address of the fleet API, to be reached from here.
        ports: ports that should be free on this machine.
    """
    yield from _installation()
    if app is not None:
        yield from _app(app)
    if site is not None:
        yield from _site(site)
    if keys is not None:
        yield from _keys(keys, server)
    if server is not None:
        yield from _server(server, keys)
    for port in ports:
        taken = listens("127.0.0.1", port)
        yield Finding("FAIL" if taken else "ok", f"port {port} is {'taken by another program' if taken else 'free'}")


def _installation() -> Generator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok" if sys.version_info >= (3, 11) else "FAIL", f"Python {found} (3.11 or newer is wanted)")
    try:
        flower = version("flwr")
    except PackageNotFoundError:
        yield Finding("FAIL", "Flower is not installed: pip install 'fedrag[federated]'")
        return
    fits = flower.startswith(f"{FLOWER}.")
    yield Finding("ok" if fits else "FAIL", f"Flower {flower} ({FLOWER} is wanted)")
    from fedrag.federated.deployment.supernode import HOOK

    there = hasattr(import_module(HOOK[0]), HOOK[1])
    yield Finding("ok" if there else "FAIL", f"Flower has {'' if there else 'no '}{HOOK[1]}, which pinning wraps")
    for name in ("flwr", "flower-superlink", "flower-supernode", "flower-superexec"):
        try:
            command(name)
        except FedRAGError as error:
            yield Finding("FAIL", str(error))


def _app(app: Path) -> Generator[Finding]:
    from fedrag.federated.deployment.pins import bundle
    from fedrag.federated.deployment.project import load_task

    try:
        made = bundle(app)
        yield Finding("ok", f"{app} is an app of {len(made.files)} files; its pin is {made.hash}")
        settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
        module = str(settings["tool"]["flwr"]["app"]["components"]["clientapp"]).partition(":")[0]
        task = load_task(app / f"{module}.py")
        yield Finding("ok", f"its task can be imported: {task.plan.rounds} rounds, a quorum of {task.plan.quorum}")
        if not task.plan.checkpoint:
            yield Finding(
                "warn", "its plan has no checkpoint: the final state stays at the sites, and no run is resumed"
            )
    except FedRAGError as error:
        yield Finding("FAIL", str(error))


def _site(path: Path) -> Generator[Finding]:
    from fedrag.federated.site import Site

    try:
        site = Site.open(path)
    except FedRAGError as error:
        yield Finding("FAIL", str(error))
        return
    yield Finding("ok", f"{path} is of site {site.name!r}")
    if "store" in tomllib.loads(path.read_text(encoding="utf-8")):
        there = site.path().is_dir()
        yield Finding("ok" if there else "FAIL", f"its store {site.path()} is {'there' if there else 'not there'}")
    try:
        yield Finding("ok", f"it has {len(site.examples('train'))} examples to train on")
    except FedRAGError as error:
        yield Finding("warn", str(error))
    mode = stat.S_IMODE(site.state.stat().st_mode)
    private = not mode & 0o077
    yield Finding("ok" if private else "FAIL", f"its state {site.state} has mode {mode:04o} (0700 is wanted)")
    free = shutil.disk_usage(site.state).free
    yield Finding("ok" if free > 1 << 30 else "warn", f"its state's disk has {free / (1 << 30):.1f} GiB left")


def _keys(folder: Path, server: str | None) -> Generator[Finding]:
    secrets = [folder / name for name in SECRETS if (folder / name).is_file()]
    if not secrets:
        yield Finding("FAIL", f"{folder} holds no key ({', '.join(SECRETS)}): write it with `fedrag federate keys`")
    for path in secrets:
        mode = stat.S_IMODE(path.stat().st_mode)
        private = not mode & 0o077 and path.stat().st_uid == os.getuid()
        yield Finding("ok" if private else "FAIL", f"{path} has mode {mode:04o} (0600, and yours, is wanted)")
    try:
        authority = read_certificate(folder / "ca.crt")
        yield from _dates(folder / "ca.crt", authority)
        if (folder / "server.crt").is_file():
            yield from _certificate(folder / "server.crt", authority, server)
        if (folder / "site.key").is_file():
            yield _key(folder / "site.key")
    except FedRAGError as error:
        yield Finding("FAIL", str(error))


def _certificate(path: Path, authority: Certificate, server: str | None) -> Generator[Finding]:
    issued = read_certificate(path)
    signed = issued.signed_by(authority)
    yield Finding("ok" if signed else "FAIL", f"{path} is {'' if signed else 'not '}signed by the authority beside it")
    yield from _dates(path, issued)
    wanted = split_address(server)[0] if server else "localhost"
    named = wanted in issued.names
    yield Finding("ok" if named else "FAIL", f"{path} is valid for {', '.join(issued.names)} (wanted: {wanted})")


def _dates(path: Path, certificate: Certificate) -> Generator[Finding]:
    now = datetime.now(UTC)
    told = f"{path} is valid from {certificate.starts:%Y-%m-%d} to {certificate.ends:%Y-%m-%d}"
    if not certificate.starts <= now <= certificate.ends:
        yield Finding("FAIL", f"{told}, and today is {now:%Y-%m-%d}")
    else:
        yield Finding("warn" if certificate.ends - now < SOON else "ok", told)


def _key(path: Path) -> Finding:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except ValueError as error:
        return Finding("FAIL", f"{path} is no OpenSSH private key: {error}")
    fits = isinstance(key, ec.EllipticCurvePrivateKey)
    return Finding(
        "ok" if fits else "FAIL", f"{path} is {'an ECDSA' if fits else f'a {type(key).__name__}, no ECDSA'} key"
    )


def _server(address: str, keys: Path | None) -> Generator[Finding]:
    host, port = split_address(address)
    trusted = ssl.create_default_context(cafile=str(keys / "ca.crt") if keys and (keys / "ca.crt").is_file() else None)
    try:
        fleet = _post(host, port, trusted, "/v1/fleet/pull-messages")
        control = _post(host, port, trusted, "/v1/control/list-runs")
    except ssl.SSLCertVerificationError as error:
        yield Finding("FAIL", f"{address} shows a certificate that is not trusted here: {error.verify_message}")
    except (OSError, http.client.HTTPException) as error:
        yield Finding("FAIL", f"{address} cannot be reached: {error}; is the server up, and the port open to here?")
    else:
        yield Finding("ok", f"{address} answers over TLS, with a certificate that is trusted here")
        here = fleet not in (403, 404, 502)
        yield Finding("ok" if here else "FAIL", f"{address} has {'' if here else 'no '}fleet API (HTTP {fleet})")
        closed = control in (403, 404)
        told = "closed from here" if closed else "OPEN from here: who reaches it submits code; put the gate before it"
        yield Finding("ok" if closed else "warn", f"the control API of {address} is {told} (HTTP {control})")


def _post(host: str, port: int, trusted: ssl.SSLContext, path: str) -> int:
    line = http.client.HTTPSConnection(host, port, timeout=10.0, context=trusted)
    try:
        line.request("POST", path, body=b"", headers={"Content-Type": "application/protobuf"})
        return line.getresponse().status
    finally:
        line.close()
