"""The benchmark of federation runs, and what it tells of bytes is what the parameters weigh."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "federation.py"


@pytest.mark.slow
def test_it_runs_and_bytes_are_as_computed() -> None:
    words = [sys.executable, str(BENCHMARK), "--quick", "--only", "overhead", "bytes", "--rounds", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for name, row in told["bytes"].items():
        if isinstance(row, dict):
            assert row["measured"] == row["computed"] > 0, name
    parts = told["overhead"]["parts_in_seconds_with_checkpoint"]
    whole = told["overhead"]["checkpoint"]
    assert 0 < whole["training"]["median"] < whole["wall"]["median"]
    assert sum(part["median"] for part in parts.values()) < whole["wall"]["median"]
    assert parts["checkpoint"]["median"] > 0
