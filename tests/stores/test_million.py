"""The benchmark of a million documents, at forty thousand: real processes, real kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "million.py"


@pytest.mark.slow
def test_killed_twice_and_resumed_it_is_the_store_of_one_run(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--documents", "40000", "--width", "64", "--folder", str(tmp_path / "w")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["equal"] is True
    saved = [run["saved"] for run in found["killed"]]
    assert 0 < saved[0] <= saved[1] < 40_000  # what was saved stays
    assert found["resumed"]["saves"] > 2
    search = found["search"]
    assert search["told"]["recall"] > 0.5
    assert search["found"] == pytest.approx(search["told"]["recall"], abs=0.06)
    assert search["told"]["documents"] == 40_000
