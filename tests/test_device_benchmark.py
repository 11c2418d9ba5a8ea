"""The GPU benchmark: the same code on a CPU, at a size for that; without CUDA it says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "device" / "throughput.py"


def run(*arguments):
    return subprocess.run([sys.executable, "-W", "ignore", SCRIPT, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_it_runs_and_its_variants_agree():
    done = run("--device", "cpu", "--size", "tiny", "--rounds", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["device"] == "cpu"
    assert found["scoring"]["pairs_per_second"]["median"] > 0
    assert set(found["rag_sequence"]["milliseconds"]) == {"document_by_document", "at_once"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_what_to_do():
    done = run()
    assert done.returncode == 1
    assert "--device cpu --size tiny" in done.stderr
