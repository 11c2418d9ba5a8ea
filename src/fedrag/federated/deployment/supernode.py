"""Flower's SuperNode, running the code that was pinned and no other.

    python -m fedrag.federated.deployment.supernode --home DIR --pin SHA256 [--pin ...] [flower-supernode's own options]

Flower can demand that an app is signed by a trusted entity, and then refuses others before it stores, unpacks or
imports them, and answers the server with an error. Its signatures come from Flower's hub, though. Here the process
makes a key that lives as long as itself, has Flower trust that key alone, and puts its signature to an app exactly when
it is pinned. So it fails closed: if a change in Flower kept the check below from being called, nothing would be signed,
and everything refused.

The check wraps one name inside Flower, `HOOK`; a version without it is refused at the start.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrag.errors import ConfigError, FedRAGError
from fedrag.federated.deployment.pins import read_pins, why_refused

if TYPE_CHECKING:
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

HOOK = ("flwr.supernode.start_client_internal", "http_request_response")
"""The connection to the server: a context manager that gives eight functions, of which two fetch a run and its app."""
GET_RUN, GET_FAB, PARTS = 3, 4, 8
ENTITY = "fpk_pinned"

Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]
_log = logging.getLogger("flwr")


class Seal:
    """Signs apps with a key of this process's own, in the form that Flower checks."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.generate()

    def trusted(self) -> dict[str, str]:
        """What `--trusted-entities` reads: the public key by its id."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return {ENTITY: self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()}

    def sign(self, content: bytes) -> dict[str, str]:
        """The verifications of an app with this content."""
        signed_at = int(time.time())
        signature = self._key.sign(signed_at.to_bytes(8, "big") + hashlib.sha256(content).digest())
        told = {"signature": base64.urlsafe_b64encode(signature).decode(), "signed_at": signed_at}
        return {"valid_license": "pinned", ENTITY: json.dumps(told)}


def pinning(connect: Connect, pins: frozenset[str], seal: Seal) -> Connect:
    """The connection, with what it fetches signed where it is pinned, and stripped of every signature where not."""

    @contextmanager
    def connection(*args: Any, **settings: Any) -> Generator[tuple[Any, ...]]:
        with connect(*args, **settings) as parts:
            if len(parts) != PARTS:
                raise ConfigError(f"Flower's connection has {len(parts)} parts, not the {PARTS} known; {_versions()}")
            runs: dict[int, Run] = {}
            fetch_run, fetch_app = parts[GET_RUN], parts[GET_FAB]

            def get_run(run_id: int) -> Run:
                runs[run_id] = fetch_run(run_id)
                return runs[run_id]

            def get_fab(fab_hash: str, run_id: int) -> Fab:
                fab: Fab = fetch_app(fab_hash, run_id)
                # a server may sign what it likes, and may say that it cannot: only what is decided here counts
                fab.verifications = {"valid_license": "pinned"}
                if reason := why_refused(fab, runs.get(run_id), pins):
                    _log.error("REFUSED the app of run %s: %s. Nothing of it was unpacked or run.", run_id, reason)
                else:
                    fab.verifications = seal.sign(fab.content)
                return fab

            yield (*parts[:GET_RUN], get_run, get_fab, *parts[GET_FAB + 1 :])

    return connection


def install(pins: frozenset[str], seal: Seal) -> None:
    """Put the check into this process. Raises `ConfigError` for a Flower that has no such place."""
    module = importlib.import_module(HOOK[0])
    if not hasattr(module, HOOK[1]):
        raise ConfigError(f"Flower has no {'.'.join(HOOK)}, which pinning wraps; {_versions()}")
    setattr(module, HOOK[1], pinning(getattr(module, HOOK[1]), pins, seal))


def main(words: Sequence[str]) -> None:
    """Start the SuperNode; returns when it ends."""
    parser = argparse.ArgumentParser(prog="python -m fedrag.federated.deployment.supernode", allow_abbrev=False)
    parser.add_argument("--home", type=Path, required=True, help="folder of this site's Flower; emptied of apps")
    parser.add_argument("--pin", action="append", default=[], help="SHA-256 of an app that may run; repeat for more")
    settings, rest = parser.parse_known_args(words)
    pins = read_pins(settings.pin)
    if not pins:
        raise ConfigError("no --pin was given: print the hash of the app that you read with `fedrag federate pin DIR`")
    if any(word.split("=")[0] == "--trusted-entities" for word in rest):
        raise ConfigError("--trusted-entities would let apps run that are not pinned; pin them instead")
    home: Path = settings.home.absolute()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Flower finds unpacked apps by name, version and eight digits of the hash, and takes what lies there as it is
    shutil.rmtree(home / "apps", ignore_errors=True)
    os.environ["FLWR_HOME"] = str(home)

    seal = Seal()
    trusted = home / "pinned.yaml"
    trusted.write_text(json.dumps(seal.trusted()), encoding="utf-8")  # JSON is YAML
    install(pins, seal)
    sys.argv = ["flower-supernode", *rest, "--trusted-entities", str(trusted)]
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


def _versions() -> str:
    from importlib.metadata import version

    return f"installed is flwr {version('flwr')}, and fedrag is tested with flwr 1.41: install that one"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FedRAGError as error:
        sys.exit(f"fedrag: {error}")
