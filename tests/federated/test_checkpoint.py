"""A run's checkpoint: whole or the one before, and never that of another run."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from crash import names, run
from federating import Walker, federate, same, three
from fedrag import durable
from fedrag.errors import ConfigError, StoreError
from fedrag.federated import Plan
from fedrag.federated.checkpoint import Run, load, save
from fedrag.federated.history import History, Round, SiteRound

PLAN = Plan(rounds=4)


def round_of(number: int) -> Round:
    sites = {"a": SiteRound(3.0, {"num-examples": 3.0, "loss": 0.1 * number})}
    return Round(number, sites, {"b": "training failed"}, ("c",), {"loss": 0.1 * number}, 12, 8, 0.5)


def run_after(count: int) -> Run:
    """A run after so many rounds: everything in it tells how many."""
    state = {"w": torch.full((3,), count / 3), "b": torch.full((1,), count / 7).to(torch.bfloat16)}
    strategy = {"FedAdam/m_t/0": torch.full((3,), count / 9, dtype=torch.float64)}
    return Run("0123456789abcdef", "f" * 64, state, strategy, History([round_of(n) for n in range(count)]))


def alike(one: Run | None, other: Run) -> bool:
    return (
        one is not None
        and (one.token, one.fingerprint, one.history) == (other.token, other.fingerprint, other.history)
        and same(one.state, other.state)
        and same(one.strategy, other.strategy)
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert load(tmp_path / "run", PLAN) is None
    for count in (1, 2):
        save(tmp_path / "run", PLAN, run_after(count))
        assert alike(load(tmp_path / "run", PLAN), run_after(count))
    closed = run_after(2)
    closed.history.closing = round_of(4)
    save(tmp_path / "run", PLAN, closed)
    assert alike(load(tmp_path / "run", PLAN), closed)
    theirs = safetensors.torch.load_file(durable.current(tmp_path / "run") / "state.safetensors")
    assert same({name: theirs[name] for name in closed.state}, closed.state)


@pytest.mark.parametrize("how", ["kill", "full"])
def test_wherever_it_ends_the_old_run_is_there_or_the_new_one(tmp_path: Path, how: str) -> None:
    old, new, met = run_after(1), run_after(2), []
    for at in itertools.count():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        save(tmp_path / "run", PLAN, old)
        end, steps = run(lambda: save(tmp_path / "run", PLAN, new), at, how)  # type: ignore[arg-type]
        found = load(tmp_path / "run", PLAN)
        met.append(alike(found, new))
        assert met[-1] or alike(found, old)
        assert met[-1] or end != "done"
        if at >= len(steps):
            assert names(steps) >= {"mkdir", "open", "write", "fsync", "replace"}
            break
    assert met == sorted(met)  # once the new one is there, it stays
    assert met.count(False) > 9


def test_the_run_of_another_plan_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "run", PLAN, run_after(1))
    for other in (Plan(rounds=5), Plan(rounds=4, seed=1), Plan(rounds=4, personal=["w"])):
        with pytest.raises(ConfigError, match="had another plan"):
            load(tmp_path / "run", other)
    assert load(tmp_path / "run", Plan(rounds=4, quorum=3, round_timeout=5.0)) is not None


def damaged(folder: Path, name: str, data: bytes) -> None:
    (durable.current(folder) / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("run.json", b""),
        ("run.json", b"\xff"),
        ("run.json", b"[]"),
        ("run.json", b"{}"),
        ("run.json", b'{"format": "1"}'),
        ("run.json", json.dumps({"format": 1, "plan": PLAN.digest()}).encode()),
        ("run.json", json.dumps({"format": 1, "plan": PLAN.digest(), "token": "", "fingerprint": ""}).encode()),
        ("state.safetensors", b""),
        ("state.safetensors", b"\0" * 50),
        ("strategy.safetensors", b"{}"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    save(tmp_path / "run", PLAN, run_after(1))
    damaged(tmp_path / "run", name, data)
    with pytest.raises(StoreError, match=r"the run in .*run cannot be read"):
        load(tmp_path / "run", PLAN)


def test_a_lost_file_and_a_newer_format_are_named(tmp_path: Path) -> None:
    save(tmp_path / "run", PLAN, run_after(1))
    about = json.loads((durable.current(tmp_path / "run") / "run.json").read_text())
    damaged(tmp_path / "run", "run.json", json.dumps({**about, "format": 2}).encode())
    with pytest.raises(StoreError, match="newer fedrag"):
        load(tmp_path / "run", PLAN)
    damaged(tmp_path / "run", "run.json", json.dumps(about).encode())
    (durable.current(tmp_path / "run") / "state.safetensors").unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        load(tmp_path / "run", PLAN)


@given(st.binary(max_size=12), st.integers(0, 900), st.sampled_from(["run.json", "state.safetensors"]))
def test_any_change_is_a_run_or_told(
    tmp_path_factory: pytest.TempPathFactory, piece: bytes, at: int, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    if not folder.exists():
        save(folder, PLAN, run_after(1))
    path = durable.current(folder) / name
    good = path.read_bytes()
    at %= len(good)
    path.write_bytes(good[:at] + piece + good[at + len(piece) :])
    try:
        assert load(folder, PLAN) is not None
    except (StoreError, ConfigError):
        pass
    finally:
        path.write_bytes(good)


def test_every_round_is_on_the_disk_before_the_next_begins(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def on_round(done: Round) -> None:
        found = load(tmp_path / "run", plan)
        assert found is not None
        seen.append((done.number, len(found.history.rounds)))
        assert (found.history.closing is not None) == (done.number == 3)

    plan = Plan(rounds=3, checkpoint=tmp_path / "run")
    outcome = federate(Walker, plan, three(), on_round=on_round)
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 3)]
    assert alike(load(tmp_path / "run", plan), outcome.run)


def test_a_history_goes_to_json_and_back() -> None:
    history = federate(Walker, Plan(rounds=2), three()).run.history
    again = History.from_json(json.loads(json.dumps(history.to_json())))
    assert again == history
    assert again.curve("eval_distance") == [row.metrics["eval_distance"] for row in again.rounds] + [
        again.closing.metrics["eval_distance"] if again.closing else 0.0
    ]
    assert len(again.site_curve("b", "eval_distance")) == 3
    assert again.site_curve("nobody", "loss") == []
    assert again.bytes == sum(row.bytes_down + row.bytes_up for row in again.rounds) + 3 * 24
