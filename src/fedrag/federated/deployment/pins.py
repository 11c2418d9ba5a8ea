"""The hash of the code that a site's operator has read.

Who submits a Flower app runs code at the sites. A pin is the SHA-256 of an app as Flower bundles it (a FAB: a zip of
its files under fixed dates, uncompressed, so that the same files give the same bytes on every machine). The operator
reads the folder, prints its pin, and starts the site with it; anything else is refused before it is unpacked.

What is pinned is the app's own files and its settings. The packages that it imports are those that the operator
installed at the site, and the data is the site's: neither comes with an app.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedrag.errors import InputError

if TYPE_CHECKING:
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

OVERRIDES = {"resume"}
"""Settings that a run may change: they are read at the server alone."""

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An app as it is submitted: its hash, its bytes, and its files with their own hashes."""

    hash: str
    content: bytes
    files: tuple[tuple[str, str], ...]


def bundle(app: Path) -> Bundle:
    """Bundle a folder as `flwr run` does, running nothing of it. Raises `InputError` for a folder that is no app."""
    from flwr.cli.build import build_fab_from_disk

    if not (app / "pyproject.toml").is_file():
        raise InputError(f"{app} has no pyproject.toml, so it is no Flower app; write one with `fedrag federate init`")
    try:
        content = build_fab_from_disk(app)
    except ValueError as error:
        raise InputError(f"{app} is no Flower app that can be submitted: {error}") from error
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        listed = tuple((name, hashlib.sha256(files.read(name)).hexdigest()) for name in sorted(files.namelist()))
    return Bundle(hashlib.sha256(content).hexdigest(), content, listed)


def read_pins(given: Sequence[str]) -> frozenset[str]:
    """Check pins as they were typed. Raises `InputError` for one that is no SHA-256."""
    pins = frozenset(pin.strip().lower().removeprefix("sha256:") for pin in given)
    if wrong := [pin for pin in pins if not _HASH.fullmatch(pin)]:
        raise InputError(
            f"{wrong[0]!r} is no pin: wanted are the 64 hex digits that `fedrag federate pin` prints for a folder"
        )
    return pins


def why_refused(fab: Fab, run: Run | None, pins: frozenset[str]) -> str | None:
    """Why this app may not run here, or `None` for a pinned one.

    The hash is computed from the bytes: what the server calls them is not believed. The run is checked too, since
    Flower finds the unpacked code by the name and version that the run gives, and a run may change the app's settings.
    """
    digest = hashlib.sha256(fab.content).hexdigest()
    if digest not in pins:
        return f"its hash {digest} is not pinned here"
    if run is None or run.fab_hash != digest or fab.hash_str != digest:
        return f"the server names it {run.fab_hash if run else fab.hash_str}, and its hash is {digest}"
    from flwr.cli.config_utils import get_fab_metadata  # reads the bundle's settings, so only now

    name, version = get_fab_metadata(fab.content)
    if (run.fab_id, run.fab_version) != (name, version):
        return f"the run calls it {run.fab_id} {run.fab_version}, and it is {name} {version}"
    if changed := sorted(set(run.override_config) - OVERRIDES):
        return f"the run changes its settings ({', '.join(changed)}), and settings are pinned too"
    return None
