"""A plan says at once what cannot work, and its digest is the same wherever it is computed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAdam, FedProx
from hypothesis import given
from hypothesis import strategies as st

from fedrag.errors import ConfigError
from fedrag.federated import Averaging, ExactLoRA, Plan


class Half:
    ranks = False

    def begin(self) -> None: ...

    def add(self) -> None: ...

    def finish(self) -> None: ...

    def outgoing(self) -> None: ...

    def state_dict(self) -> None: ...


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rounds": 0}, "rounds is a whole number from 1 on, got 0"),
        ({"rounds": 2.0}, "rounds is a whole number"),
        ({"rounds": True}, "rounds is a whole number"),
        ({"quorum": 0}, "quorum is a whole number from 1 on"),
        ({"seed": -1}, "seed is a whole number from 0 on"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"fraction": 0}, "fraction is a share"),
        ({"fraction": 1.1}, "fraction is a share"),
        ({"fraction": math.nan}, "fraction is a share"),
        ({"fraction": "all"}, "fraction is a share"),
        ({"weighting": "size"}, "weighting is one of examples, uniform, got 'size'"),
        ({"precision": "int8"}, "precision is one of keep, bfloat16"),
        ({"keep_optimizer": 1}, "keep_optimizer is true or false"),
        ({"evaluate": None}, "evaluate is true or false"),
        ({"personal": "own/*"}, "personal is a list of patterns"),
        ({"personal": [""]}, "personal is a list of patterns"),
        ({"personal": [3]}, "personal is a list of patterns"),
        ({"personal": None}, "personal is a list of patterns"),
        ({"max_norm": 0}, "max_norm is a number above 0"),
        ({"max_norm": math.inf}, "max_norm is a number above 0"),
        ({"round_timeout": None}, "round_timeout is a number above 0, got None"),
        ({"node_timeout": -1}, "node_timeout is a number above 0"),
        ({"checkpoint": ""}, "checkpoint is the path of a folder"),
        ({"checkpoint": 3}, "checkpoint is the path of a folder"),
        ({"strategy": Averaging}, r"give Averaging\(\)"),
        ({"strategy": "fedavg"}, "str is no strategy"),
        ({"strategy": Half()}, "Half is no strategy: it has no load_state_dict"),
        ({"strategy": FedProx()}, "FedProx cannot work here"),
        ({"strategy": FedAdam(fraction_train=0.5)}, "has no effect here"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Plan(**{"rounds": 2, **settings})


ANY = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=3), st.lists(st.text(max_size=3)),
    st.sampled_from(["keep", "bfloat16", "examples", "uniform", Averaging(), ExactLoRA(), Path("x")]),
)  # fmt: skip
FIELDS = list(Plan.__dataclass_fields__)


@given(st.dictionaries(st.sampled_from(FIELDS), ANY))
def test_any_values_make_a_plan_or_say_why_not(settings: dict[str, Any]) -> None:
    complaint = ""
    try:
        plan = Plan(**{"rounds": 2, **settings})
    except ConfigError as error:
        complaint = str(error)
    if complaint:
        assert any(field in complaint for field in settings)
        return
    assert plan.rounds >= 1
    assert 0 < plan.fraction <= 1
    assert plan.folding() is not None
    assert len(plan.digest()) == 64


def test_the_strategy_is_the_one_that_was_given() -> None:
    mine = ExactLoRA()
    assert Plan(rounds=1, strategy=mine).folding() is mine
    assert type(Plan(rounds=1).folding()) is Averaging
    flower = Plan(rounds=1, strategy=FedAdam())
    assert type(flower.folding()).__name__ == "FlowerStrategy"
    assert flower.folding() is not flower.folding()  # two runs share no momenta


SAME_EVERYWHERE = {
    "rounds": 3,
    "seed": 1,
    "keep_optimizer": True,
    "evaluate": False,
    "personal": ("own/*",),
    "precision": "bfloat16",
}
THE_SERVERS_OWN = {
    "quorum": 2,
    "fraction": 0.5,
    "weighting": "uniform",
    "max_norm": 1.0,
    "round_timeout": 1.0,
    "node_timeout": 1.0,
    "checkpoint": "runs",
    "strategy": ExactLoRA(),
}


def test_the_digest_is_of_what_must_be_the_same_at_every_site() -> None:
    assert set(SAME_EVERYWHERE) | set(THE_SERVERS_OWN) == set(FIELDS)
    plain = Plan(rounds=2).digest()
    digests = [Plan(**{"rounds": 2, name: value}).digest() for name, value in SAME_EVERYWHERE.items()]
    assert len({plain, *digests}) == 1 + len(SAME_EVERYWHERE)
    for name, value in THE_SERVERS_OWN.items():
        assert Plan(**{"rounds": 2, name: value}).digest() == plain
    assert Plan(rounds=2, personal=["own/*"]).digest() == Plan(rounds=2, personal=("own/*",)).digest()


def test_another_process_has_the_same_digest_and_needs_neither_torch_nor_flower() -> None:
    code = (
        "import json, sys\n"
        "from fedrag.federated import FederatedTask, Plan, Site\n"
        f"plan = Plan(**json.loads({json.dumps(json.dumps(SAME_EVERYWHERE))}))\n"
        "FederatedTask(lambda site: None, plan)\n"
        "print(plan.digest(), [name for name in ('torch', 'flwr', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == f"{Plan(**SAME_EVERYWHERE).digest()} []"
