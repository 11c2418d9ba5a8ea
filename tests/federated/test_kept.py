"""What a site keeps: a round that comes twice starts where it started, wherever the power went off."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from crash import fsynced, names, run
from federating import same
from fedrag.errors import InputError, TrainingError
from fedrag.federated import Site
from fedrag.federated.exchange import unpack
from fedrag.federated.kept import Kept

RUN = "0123456789abcdef"


def head(round: int) -> dict[str, torch.Tensor]:
    return {"own/head": torch.tensor([float(round), 0.5])}


def kept_at(folder: Path, *rounds: int) -> Kept:
    kept = Kept(Site("north", state=folder), RUN)
    for round in rounds:
        kept.keep_own(round, head(round))
    return kept


def before(kept: Kept, round: int) -> int | None:
    """The round after which the parameters were as this round finds them."""
    found = kept.own(round)
    return None if found is None else int(unpack(found)["own/head"][0])


def test_a_round_finds_what_the_one_before_left(tmp_path: Path) -> None:
    kept = kept_at(tmp_path)
    assert before(kept, 0) is None
    for round in (0, 1, 4):  # at some rounds a site is not asked
        kept.keep_own(round, head(round))
        assert before(kept, round + 1) == round
    assert (before(kept, 9), before(kept, 4)) == (4, 1)
    assert same(unpack(kept.own(9) or {}), head(4))
    kept.keep_own(4, head(4))
    assert (before(kept, 5), before(kept, 4)) == (4, 1)


def test_a_first_round_that_comes_twice_starts_from_what_was_built(tmp_path: Path) -> None:
    kept = kept_at(tmp_path, 3)
    assert (before(kept, 3), before(kept, 4)) == (None, 3)
    kept.keep_own(3, head(3))
    assert (before(kept, 3), before(kept, 4)) == (None, 3)
    kept.keep_own(4, head(4))
    assert before(kept, 3) is None
    kept.keep_own(5, head(5))
    with pytest.raises(TrainingError, match="after round 5, wanted are those before round 3: start a new run"):
        kept.own(3)


def test_a_new_run_forgets(tmp_path: Path) -> None:
    kept = kept_at(tmp_path, 0, 1, 0)
    assert before(kept, 0) is None
    assert before(kept, 1) == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    kept = kept_at(tmp_path, 0)
    path = tmp_path / RUN / "own.safetensors"
    for data in (b"", path.read_bytes()[:-1], path.read_bytes().replace(b'"round"', b'"rouns"')):
        path.write_bytes(data)
        with pytest.raises(TrainingError, match=r"own\.safetensors cannot be read: start a new run"):
            kept.own(1)


@pytest.mark.parametrize("token", ["", "..", "0123456789ABCDEF", RUN + "0", None, 3])
def test_a_token_that_is_none(tmp_path: Path, token: object) -> None:
    with pytest.raises(InputError, match="wanted are 16 hexadecimal digits"):
        Kept(Site("north", state=tmp_path), token)


def test_no_kill_loses_what_a_round_needs(tmp_path: Path) -> None:
    met: set[str] = set()
    for at in itertools.count():
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        kept = kept_at(tmp_path / "state", 0, 1)
        end, steps = run(lambda kept=kept: kept.keep_own(2, head(2)), at, "kill")
        met |= names(steps)
        assert before(kept, 2) == 1
        assert before(kept, 3) == (2 if end == "done" else before(kept, 3))
        assert before(kept, 3) in (1, 2)
        kept.keep_own(2, head(2))  # the round comes again
        assert (before(kept, 2), before(kept, 3)) == (1, 2)
        if at >= len(steps):
            assert fsynced(steps, tmp_path / "state" / RUN)
            break
    assert met >= {"open", "write", "fsync", "replace"}


def test_the_final_state_is_whole_or_not_there(tmp_path: Path) -> None:
    for at in itertools.count():
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        kept = kept_at(tmp_path / "state")
        end, steps = run(lambda kept=kept: kept.keep_final(head(7)), at, "kill")
        path = tmp_path / "state" / RUN / "final.safetensors"
        if path.exists():
            from safetensors.torch import load_file

            assert same(load_file(path), head(7))
        assert path.exists() or end == "killed"
        if at >= len(steps):
            break
