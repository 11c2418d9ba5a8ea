"""Every experiment, end to end, in a slice that is too small to find anything out: cells, resuming, page and chart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def run(script, folder, *arguments):
    command = [sys.executable, str(EXPERIMENTS / f"{script}.py"), "--size", "tiny", "--jobs", "1"]
    command += ["--out", str(folder), "--publish", str(folder / "pages"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "page", "regimes"),
    [
        ("world", "world", ["frozen", "RALT, then RAG-Token"]),
        ("domains", "domains", ["frozen"]),
        ("real_text", "real-text", ["untrained", "sentence-transformers, plain"]),
        ("efficiency", "efficiency-readers", ["RALT", "TRL SFT"]),
    ],
)
def test_a_slice_runs_goes_on_and_publishes(tmp_path, script, page, regimes):
    only = [part for regime in regimes for part in ("--only", regime)]
    done = run(script, tmp_path, *only)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "pages" / f"{page}.json").read_text())
    assert list(content["regimes"]) == regimes
    assert set(content["settings"]) == set(regimes)
    text = (tmp_path / "pages" / f"{page}.md").read_text()
    assert all(f"| {regime} |" in text for regime in regimes)
    assert "<svg" in (tmp_path / "pages" / f"{page}.svg").read_text()
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json") if path.parent.name != "pages"}
    assert run(script, tmp_path, *only).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in cells} == cells


@pytest.mark.slow
@pytest.mark.parametrize("script", ["world", "domains", "real_text", "efficiency"])
def test_a_script_says_what_it_does(script, tmp_path):
    done = run(script, tmp_path, "--help")
    assert done.returncode == 0
    assert "--jobs" in done.stdout
    assert len(done.stdout.splitlines()) > 15


@pytest.mark.slow
def test_a_cell_that_fails_names_its_log(tmp_path):
    # where the cell's file is to be written first, a folder stands
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "frozen-0.json.new").mkdir()
    done = run("world", tmp_path, "--only", "frozen")
    assert done.returncode == 1
    assert "frozen-0.log" in done.stderr
