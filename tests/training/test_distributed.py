"""Two gloo ranks on this machine train as one process with twice the batch; rank 0 alone retrieves and writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from systems import EXAMPLES
from two_ranks import MAKERS, train_all

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "two_ranks.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", str(SCRIPT), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    train_all(path, 0, 1)
    return path


@pytest.mark.parametrize("name", MAKERS)
def test_ranks_agree_and_equal_one_process(name, folder):
    zero, one, alone = (load_file(folder / f"{name}-{at}.safetensors") for at in ("0of2", "1of2", "0of1"))
    for key in set(alone) - {"asked", "eval_loss"}:
        assert torch.equal(zero[key], one[key])
        torch.testing.assert_close(zero[key], alone[key], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(zero["eval_loss"], alone["eval_loss"], atol=1e-4, rtol=1e-4)
    assert torch.equal(zero["eval_loss"], one["eval_loss"])


@pytest.mark.parametrize(("name", "sweeps"), [("ralt", 1), ("lsr", 2), ("rag-sequence", 2), ("joint", 2)])
def test_rank_0_alone_retrieves_and_writes(name, sweeps, folder):
    zero, one, alone = (load_file(folder / f"{name}-{at}.safetensors") for at in ("0of2", "1of2", "0of1"))
    assert int(zero["asked"]) == int(alone["asked"]) == sweeps * len(EXAMPLES) + 2 * 5  # and two evaluations
    assert int(one["asked"]) == 0
    assert (folder / f"{name}-run-0" / "checkpoint-3" / "trainable.safetensors").is_file()
    assert not list((folder / f"{name}-run-1").glob("**/trainable.safetensors"))
