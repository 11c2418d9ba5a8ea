import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedrag.ops.fingerprint import Fingerprint
from tiny import tiny_llama

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=1e-4, fused=True),
}


def wide(seed: int = 0) -> nn.Module:
    """Two tensors far larger than the sample that is looked at."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Embedding(2000, 16), nn.Linear(16, 2000))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_step_changes_it(name: str):
    # fused steps leave the tensors' version counters alone
    model = wide()
    weights, seen = Fingerprint(model), set[str]()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    for _ in range(3):
        seen.add(weights())
        model(torch.tensor([3])).sum().backward()
        optimizer.step()
    assert len({*seen, weights()}) == 4


def test_a_step_that_is_undone_brings_it_back():
    model = wide()
    weights, state = Fingerprint(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = weights()
    with torch.no_grad():
        model[0].weight[1234, 5] += 1e-3  # type: ignore[index]
    assert weights() != before
    model.load_state_dict(state)
    assert weights() == before


def test_writes_that_bypass_autograd_change_it():
    model = wide()
    weights = Fingerprint(model)
    before = weights()
    model[1].weight.data.mul_(1.001)
    assert weights() != before
    replaced = weights()
    model[1].weight = nn.Parameter(torch.zeros(2000, 16))
    assert weights() not in (before, replaced)


def test_it_tells_names_shapes_and_dtypes_apart():
    zeros = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3).bfloat16()
    for layer in zeros:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert len({Fingerprint(layer)() for layer in zeros}) == 3


def test_equal_weights_have_equal_fingerprints_also_in_another_process():
    assert Fingerprint(tiny_llama(seed=1))() == Fingerprint(tiny_llama(seed=1))() != Fingerprint(tiny_llama(seed=2))()
    program = (
        "import torch\nfrom fedrag.ops.fingerprint import Fingerprint\n"
        "layer = torch.nn.Linear(40, 40)\n[torch.nn.init.constant_(p, 0.25) for p in layer.parameters()]\n"
        "print(Fingerprint(layer)())"
    )
    outside = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    layer = nn.Linear(40, 40)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 0.25)
    assert Fingerprint(layer)() == outside


def test_asking_again_does_not_read_the_weights_again():
    layer = nn.Linear(2048, 4096)  # 32 MiB
    weights = Fingerprint(layer)
    started = time.process_time()
    weights()
    first = time.process_time() - started
    started = time.process_time()
    for _ in range(5):
        weights()
    assert time.process_time() - started < first
