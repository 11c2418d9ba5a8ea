"""What a federation will cost, as it is told, against what runs have cost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedMedian

from federating import Walker, federate
from fedrag.errors import ConfigError, InputError
from fedrag.federated import ExactLoRA, Plan, Site
from fedrag.federated.preflight import preflight
from recipes import RECIPES, dpo, sentence


class Held:
    """Five members, of which four must not be asked."""

    num_examples = 3

    def __init__(self, **state):
        self.state = state

    def exchange_state(self):
        return self.state

    def load_exchange_state(self, state):
        raise AssertionError

    def train(self, segment):
        raise AssertionError

    def evaluate(self):
        raise AssertionError


def mixed():
    return Held(
        w=torch.zeros(64, 3),
        half=torch.zeros(5, dtype=torch.float16),
        brain=torch.zeros(7, 2, dtype=torch.bfloat16),
        double=torch.zeros(6, dtype=torch.float64),
        single=torch.zeros(()),
        head=torch.zeros(9),
    )


class Mixed(Walker):
    """All dtypes and odd shapes; `head` may be personal."""

    def __init__(self, site):
        super().__init__(site)
        self.state = mixed().state


# -- bytes


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bfloat16"},
        {"fraction": 0.5, "rounds": 3},
        {"fraction": 0.01, "quorum": 2},
        {"personal": ["head", "h*f"]},
        {"strategy": FedAdam()},
    ],
    ids=["plain", "bfloat16", "half the sites", "few", "personal", "FedAdam"],
)
def test_bytes_are_those_of_a_real_run(settings):
    plan = Plan(**{"rounds": 2, **settings})
    sites = [Site(name) for name in "abcde"]
    told = preflight(mixed(), sites=5, plan=plan)
    done = federate(Mixed, plan, sites)
    assert (told.run_bytes, told.run_bytes) == (done.grid.bytes_down, done.grid.bytes_up)
    for each in done.rounds:
        assert each.bytes_down == each.bytes_up == told.training * told.state_bytes
        assert len(each.sites) == told.training
    assert told.header_bytes > 0


@pytest.mark.parametrize("name", ["ralt", "sft", "sentence"])
def test_bytes_of_a_trainer_are_those_of_a_real_run(name, tmp_path):
    def build(site):
        lora = {"lora": 4} if name == "ralt" else {}
        return RECIPES[name](tmp_path / site.name, max_steps=1, **lora)

    plan = Plan(rounds=1, evaluate=False, precision="bfloat16" if name == "sft" else "keep")
    told = preflight(build(Site("a")), sites=2, plan=plan)
    done = federate(build, plan, [Site("a"), Site("b")])
    assert told.run_bytes == done.grid.bytes_down == done.grid.bytes_up
    assert done.run.history.bytes == 2 * 2 * told.state_bytes + 2 * told.state_bytes  # the closing is one way


def test_seconds_are_those_of_the_servers_line():
    told = preflight(
        Held(w=torch.zeros(1_000_000, dtype=torch.bfloat16)), sites=3, plan=Plan(rounds=9), mbit_per_second=8
    )
    assert told.message_bytes == 2_000_000
    assert told.seconds_per_round == pytest.approx(2 * 3 * 2.0)  # 1 MB a second


# -- what stays


def test_what_stays_is_counted_once(tmp_path):
    trainer = RECIPES["ralt"](tmp_path, lora=4)
    told = preflight(trainer, sites=2, plan=Plan(rounds=1, personal=["*layers.0.*"]))
    everything = list(trainer.objective.rag.named_parameters().values())
    trained = trainer.objective.trainable()
    first = sum(p.numel() for name, p in trained.items() if ".layers.0." in name)
    assert told.own.numbers == first > 0
    assert told.exchanged.numbers == sum(p.numel() for p in trained.values()) - first > 0
    assert told.frozen is not None
    assert sum(s.numbers for s in (told.exchanged, told.own, told.frozen)) == sum(p.numel() for p in everything)
    assert sum(s.bytes for s in (told.exchanged, told.own, told.frozen)) == 4 * sum(p.numel() for p in everything)


def test_the_weights_of_a_loss_travel_and_a_reference_model_stays(tmp_path):
    loss = preflight(sentence(tmp_path), sites=2, plan=Plan(rounds=1))
    assert loss.frozen is not None
    assert loss.frozen.numbers == 0
    trainer = dpo(tmp_path, lora=False)
    whole = preflight(trainer, sites=2, plan=Plan(rounds=1))
    assert whole.frozen is not None
    assert whole.frozen.numbers == sum(p.numel() for p in trainer.ref_model.parameters()) == whole.exchanged.numbers


# -- it only looks


def test_nothing_is_changed(tmp_path):
    trainer = RECIPES["joint"](tmp_path, lora=4, dropout=0.5)
    parameters = trainer.objective.rag.named_parameters()
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    required = {name: p.requires_grad for name, p in parameters.items()}
    modes = [module.training for module in trainer.objective.modules()]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    preflight(trainer, sites=3, plan=Plan(rounds=2, strategy=FedMedian()))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert all(torch.equal(weights[name], p) for name, p in parameters.items())
    assert required == {name: p.requires_grad for name, p in parameters.items()}
    assert modes == [module.training for module in trainer.objective.modules()]
    assert (trainer.state.global_step, trainer.optimizer) == (0, None)


# -- what cannot be


@pytest.mark.parametrize(
    ("plan", "settings", "message"),
    [
        ({"quorum": 4}, {}, "from the plan's quorum, 4, on; got 3"),
        ({}, {"sites": True}, "got True"),
        ({}, {"sites": 2.0}, "got 2.0"),
        ({}, {"mbit_per_second": 0}, "mbit_per_second is a number above 0, got 0"),
        ({"personal": ["*"]}, {}, "nothing is left to exchange"),
        ({"strategy": ExactLoRA()}, {}, "none of the 6 parameters exchanged"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan, settings, message):
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        preflight(mixed(), plan=Plan(rounds=1, **plan), **{"sites": 3, **settings})


def test_what_cannot_be_exchanged_is_refused():
    with pytest.raises(InputError, match="'w' is of int64"):
        preflight(Held(w=torch.zeros(2, dtype=torch.int64)), sites=1, plan=Plan(rounds=1))
    with pytest.raises(ConfigError, match="without num_examples"):
        preflight(object(), sites=1, plan=Plan(rounds=1))


# -- the table


def test_the_table_says_it_in_one_look(tmp_path):
    trainer = RECIPES["sft"](tmp_path)
    lines = str(preflight(trainer, sites=3, plan=Plan(rounds=10, strategy=FedAdam(), fraction=0.6))).splitlines()
    assert lines[0] == "10 rounds with 2 of 3 sites, FedAdam, precision keep"
    assert [line.split("  ")[0] for line in lines[3:6]] == ["exchanged", "the site's own", "frozen"]
    assert len({len(line) for line in (*lines[2:6], *lines[7:10])}) == 1  # columns


# -- memory

SERVER = """
import json, sys
from pathlib import Path

import torch

from fedrag.federated import ExactLoRA, Plan
from fedrag.federated.app import client_app, server_app
from fedrag.federated.client import Reply
from fedrag.federated.engines.local import run_local
from fedrag.federated.exchange import Packed, pack
from fedrag.federated.preflight import preflight
from flwr.serverapp.strategy import FedMedian, Krum

name, count, training, precision = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
made = {"Averaging": lambda: None, "ExactLoRA": ExactLoRA, "FedMedian": FedMedian,
        "Krum": lambda: Krum(num_malicious_nodes=1)}[name]()
plan = Plan(rounds=2, quorum=1, fraction=training / count, strategy=made, precision=precision, evaluate=False)
width = 4_000_000 // 8 // 16  # 16 MB in 16 tensors
shapes = {"A": (8, width), "B": (width, 8)}
state = {f"l{i}.lora_{s}.weight": torch.randn(*shapes[s]) for i in range(8) for s in "AB"}
scales = json.dumps({f"l{i}": 2.0 for i in range(8)})


class Built:
    num_examples, load_exchange_state, train, evaluate = 3, None, None, None
    def exchange_state(self): return state


told = preflight(Built(), sites=count, plan=plan)
packs = pack(state, precision)


def answer(node, request):
    known = {"site": str(node["site"]), "fingerprint": "f", "scales": scales}
    # bytes of its own, as they come from a network
    fresh = {n: Packed(p.dtype, p.shape, bytes(bytearray(p.data))) for n, p in packs.items()}
    return Reply(known, {"num-examples": 3.0}, {} if request.kind == "close" else fresh)


def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[field].split()[0])


client = client_app(answer)
server = server_app(plan, resume=lambda _: None, on_round=lambda _: None, over=lambda _: None)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = memory("VmRSS")
run_local(server, client, [{"site": f"s{i}"} for i in range(count)])
print(json.dumps({"told": told.server_bytes, "took": memory("VmHWM") - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read where Linux tells them")
@pytest.mark.parametrize(
    ("name", "sites", "training", "precision"),
    [
        ("Averaging", 6, 6, "keep"),
        ("Averaging", 8, 2, "bfloat16"),
        ("ExactLoRA", 4, 4, "keep"),
        ("FedMedian", 4, 4, "keep"),
        ("Krum", 5, 5, "keep"),
    ],
)
def test_server_memory_is_told_to_a_third(name, sites, training, precision):
    # what is freed goes back to the system, so that the peak is what was held
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SERVER, name, str(sites), str(training), precision]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.67 < found["told"] / found["took"] < 1.5, found
