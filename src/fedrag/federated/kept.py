"""What a site keeps of a run, in a folder of its own: its optimiser's state, its own parameters, the final state.

A round may come twice, when a server goes on from its last checkpoint. So a site's own parameters are kept as they were
after its last round and after the one before, and a round starts from the newest that are older than itself.

>>> import tempfile, torch
>>> from fedrag.federated.exchange import unpack
>>> kept = Kept(Site("north", state=tempfile.mkdtemp()), "0123456789abcdef")
>>> for round in (0, 1, 1):  # round 1 comes twice
...     before = kept.own(round)
...     kept.keep_own(round, {"head": torch.tensor([float(round)])})
>>> unpack(before or {})
{'head': tensor([0.])}
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fedrag.durable import sync
from fedrag.errors import InputError, TrainingError
from fedrag.federated.exchange import Packs, from_bytes, pack, to_bytes
from fedrag.federated.site import Site

if TYPE_CHECKING:
    from fedrag.federated.trainable import State

_TOKEN = re.compile(r"[0-9a-f]{16}")
_FIRST = "first"


class Kept:
    """The folder of one run at one site, which is made when something is written.

    Args:
        site: it has a folder of what it keeps.
        run: the run's token, 16 hexadecimal digits. It comes from the server and becomes a folder's name.

    Raises:
        InputError: for anything else as a token.
    """

    def __init__(self, site: Site, run: object) -> None:
        if not isinstance(run, str) or not _TOKEN.fullmatch(run):
            raise InputError(f"the run is called {str(run)[:40]!r}, wanted are 16 hexadecimal digits")
        self._site, self._run = site, run

    @property
    def optimizer(self) -> Path:
        """The file of the optimiser's state."""
        return self._made() / "optimizer.pt"

    def own(self, round: int) -> Packs | None:
        """The site's own parameters as they are before this round; `None` where they are as `build` made them.

        Raises:
            TrainingError: where only those of later rounds are left, or a file cannot be read.
        """
        found = [_read(path) for path in self._places() if round and path.is_file()]
        for packs, header in found:
            if int(header["round"]) < round:
                return packs
        if found and all(_FIRST not in header for _, header in found):
            raise TrainingError(
                f"{self._made()} holds the site's own parameters after round {found[0][1]['round']}, wanted are those "
                f"before round {round}: start a new run"
            )
        return None

    def keep_own(self, round: int, own: State) -> None:
        """Keep them as they are after this round."""
        newest, before = self._places()
        older = [path for path in (newest, before) if round and path.is_file() and int(_read(path)[1]["round"]) < round]
        aside = _written(newest, own, {"round": str(round), **({} if older else {_FIRST: "yes"})})
        if newest in older:
            os.replace(newest, before)
        elif not older:
            before.unlink(missing_ok=True)
        os.replace(aside, newest)
        sync(newest.parent)

    def keep_final(self, state: State) -> None:
        """Keep the state that the run ended with, the site's own parameters in it."""
        path = self._made() / "final.safetensors"
        os.replace(_written(path, state, {}), path)
        sync(path.parent)

    def _places(self) -> tuple[Path, Path]:
        return self._made() / "own.safetensors", self._made() / "own.before.safetensors"

    def _made(self) -> Path:
        folder = self._site.state / self._run
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


def _written(path: Path, state: State, header: dict[str, str]) -> Path:
    """Beside `path`, whole and on the disk."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(to_bytes(pack(state), header))
    sync(aside)
    return aside


def _read(path: Path) -> tuple[Packs, dict[str, str]]:
    try:
        packs, header = from_bytes(path.read_bytes())
        int(header["round"])
    except (InputError, KeyError, ValueError):
        raise TrainingError(f"{path} cannot be read: start a new run") from None
    return packs, header
