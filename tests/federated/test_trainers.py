"""Any Trainer as a trainable: what travels, what is taken over, what is told, what is refused."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict, IterableDataset
from peft import LoraConfig, get_peft_model
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, get_linear_schedule_with_warmup

from fedrag import LSR, RALT, Contrastive, DenseRetriever, MemoryStore, RAGTrainer, SentenceEncoder
from fedrag.errors import ConfigError, InputError, StaleIndexError
from fedrag.federated.trainable import Described, Segment, Trainable
from fedrag.federated.trainers import FromTrainer, trainable
from recipes import RECIPES, dpo, sentence, sft
from systems import DOCUMENTS, EXAMPLES, arguments, tiny_system
from tiny import tiny_llama, tiny_sentence_transformer

ROUND = Segment(0, 1, "north")


@pytest.fixture(params=RECIPES)
def build(request):
    return RECIPES[request.param]


class Net(nn.Module):
    """Two weights used twice, a BatchNorm and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 1).requires_grad_(False)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x, return_loss=True):
        return {"loss": self.frozen(self.norm(self.two(self.one(x))) + self.table).square().mean()}


def plain(folder, model=None, rows=8, **settings):
    """A Trainer of transformers over a plain module."""
    torch.manual_seed(0)
    model = Net() if model is None else model
    data = [{"x": torch.randn(4)} for _ in range(rows)]
    return Trainer(model=model, args=arguments(folder, **settings), train_dataset=data)


def adapted(folder, **settings):
    """RALT with adapters in the generator."""
    return RECIPES["ralt"](folder, lora=4, **settings)


def with_encoder_adapters(folder, rank=4, alpha=8):
    torch.manual_seed(0)
    rag = tiny_system(kind="bert")
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_lin"])
    rag.retriever = DenseRetriever(SentenceEncoder(tiny_sentence_transformer(), lora=lora), MemoryStore())
    rag.add(DOCUMENTS, progress=False)
    return RAGTrainer(LSR(rag, k=3, train="both"), train_dataset=EXAMPLES, args=arguments(folder))


# -- what travels


def test_all_that_is_trained_travels_and_nothing_else(build, tmp_path):
    trainer = build(tmp_path)
    made = FromTrainer(trainer)
    state = made.exchange_state()
    trainer.train()
    moved = {
        p.data_ptr() for group in trainer.optimizer.param_groups for p in group["params"] if trainer.optimizer.state[p]
    }
    named = made._trained()
    assert list(named) == list(state)
    assert {p.data_ptr() for p in named.values()} == moved
    assert len(moved) == len(state)


@pytest.mark.parametrize(
    ("build", "inside"),
    [
        (adapted, lambda name: name.startswith("generator/") and ".lora_" in name),
        (with_encoder_adapters, lambda name: name.startswith("retriever/") and ".lora_" in name),
        (sft, lambda name: ".lora_" in name),
        (dpo, lambda name: ".lora_" in name),
        (RECIPES["lsr"], lambda name: name.startswith("retriever/")),
        (RECIPES["ralt"], lambda name: name.startswith("generator/")),
        (sentence, lambda name: name.startswith(("0.", "loss/classifier."))),
    ],
)
def test_names(build, inside, tmp_path):
    state = FromTrainer(build(tmp_path)).exchange_state()
    assert state
    assert all(map(inside, state))


def test_a_losss_own_weights_come_once_and_the_models_not_again(tmp_path):
    state = FromTrainer(sentence(tmp_path)).exchange_state()
    assert [name for name in state if name.startswith("loss/")] == ["loss/classifier.weight", "loss/classifier.bias"]


def test_a_parameter_of_two_names_travels_once_and_buffers_do_not(tmp_path):
    state = FromTrainer(plain(tmp_path)).exchange_state()
    assert list(state) == ["one.weight", "one.bias", "two.bias", "norm.weight", "norm.bias"]
    assert "lm_head.weight" not in FromTrainer(plain(tmp_path, tiny_llama(tie_word_embeddings=True))).exchange_state()


def test_a_state_is_a_copy_in_the_parameters_own_precision(tmp_path):
    model = Net().to(torch.bfloat16)
    made = FromTrainer(plain(tmp_path, model))
    state = made.exchange_state()
    for value in state.values():
        assert (value.dtype, value.device.type, value.requires_grad) == (torch.bfloat16, "cpu", False)
        value.fill_(7.0)
    assert not any(torch.equal(value, state[name]) for name, value in made.exchange_state().items())


# -- what is taken over


def test_a_state_is_taken_over_by_name(build, tmp_path):
    made = FromTrainer(build(tmp_path))
    state = {name: torch.randn_like(value) for name, value in made.exchange_state().items()}
    made.load_exchange_state({name: state[name].double() for name in sorted(state, reverse=True)})
    got = made.exchange_state()
    assert list(got) == list(state)
    assert all(torch.equal(got[name], state[name]) and got[name].dtype == state[name].dtype for name in state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("norm.bias"), r"lacks 1 of the 5 trained parameters and has 0 others, 'norm\.bias'"),
        (lambda state: state.update(more=torch.ones(1)), "lacks 0 of the 5 .* has 1 others, 'more'"),
        (lambda state: state.update({"norm.bias": torch.ones(5)}), r"'norm\.bias' is \(5,\) of .*wanted is \(4,\)"),
        (lambda state: state.update({"norm.bias": torch.ones(1)}), r"'norm\.bias' is \(1,\) of .*wanted is \(4,\)"),
        (lambda state: state.update({"norm.bias": torch.ones(4, dtype=torch.int64)}), r"of torch\.int64 in the state"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, words, tmp_path):
    made = FromTrainer(plain(tmp_path))
    before = made.exchange_state()
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(InputError, match=words + ".*same recipe"):
        made.load_exchange_state(state)
    assert all(torch.equal(value, before[name]) for name, value in made.exchange_state().items())


def test_candidates_are_those_of_the_state_that_came(tmp_path):
    rag = tiny_system(kind="bert")
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0)
    made = FromTrainer(RAGTrainer(LSR(rag, k=3, train="both"), train_dataset=EXAMPLES, args=args))
    made.train(Segment(0, 2, "north"))
    first = dict(made.trainer.candidates.ids)
    other = tiny_sentence_transformer(seed=3)
    weights = {f"retriever/encoder/{name}": value for name, value in other.named_parameters()}
    made.load_exchange_state(weights)
    made.train(Segment(1, 2, "north"))
    fresh = DenseRetriever(SentenceEncoder(other), MemoryStore())
    fresh.add(DOCUMENTS, progress=False)
    wanted = [[hit.document.id for hit in row] for row in fresh.retrieve([e.question for e in EXAMPLES], 3)]
    assert list(made.trainer.candidates.ids.values()) == wanted
    assert list(first.values()) != wanted


def test_documents_are_embedded_anew_after_the_last_round_and_not_before(tmp_path):
    rag = tiny_system(kind="bert")
    made = FromTrainer(RAGTrainer(Contrastive(rag), train_dataset=EXAMPLES, args=arguments(tmp_path)))
    for number in range(2):
        made.train(Segment(number, 2, "north"))
        with pytest.raises(StaleIndexError):
            rag.retrieve("Which key has clerk 3 ?")
    made.finish()
    assert rag.retrieve("Which key has clerk 3 ?")
    FromTrainer(sft(tmp_path)).finish()  # has nothing to do


# -- what is told


def test_numbers_are_those_of_training_and_not_of_the_clock(build, tmp_path):
    told = [dict(FromTrainer(build(tmp_path)).train(ROUND)) for _ in range(2)]
    assert told[0] == told[1]
    assert told[0]["train_loss"] > 0
    assert all(type(value) is float for value in told[0].values())
    assert "epoch" not in told[0]


def test_evaluation_leaves_the_random_state_as_it_was(build, tmp_path):
    trainer = build(tmp_path)
    if trainer.eval_dataset is None:
        trainer.eval_dataset = trainer.train_dataset
    made = FromTrainer(trainer)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = made.evaluate()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert first["eval_loss"] > 0
    assert not any(name.endswith(("runtime", "per_second", "time")) for name in first)
    assert made.evaluate() == first
    made.train(ROUND)
    assert made.evaluate() != first


def test_nothing_to_evaluate_on_is_no_error(tmp_path):
    assert FromTrainer(sft(tmp_path, evaluate=False)).evaluate() == {}
    rag = tiny_system()
    assert FromTrainer(RAGTrainer(RALT(rag), train_dataset=EXAMPLES, args=arguments(tmp_path))).evaluate() == {}


def test_an_evaluator_of_sentence_transformers_is_enough(tmp_path):
    evaluator = EmbeddingSimilarityEvaluator(["a b", "c", "d e"], ["a", "c", "f g"], [0.5, 1.0, 0.1])
    assert FromTrainer(sentence(tmp_path, evaluator=evaluator)).evaluate()["eval_pearson_cosine"] > 0


def test_examples_are_counted(tmp_path):
    assert FromTrainer(RECIPES["ralt"](tmp_path)).num_examples == 24
    trainer = sentence(tmp_path)
    trainer.train_dataset = DatasetDict(one=trainer.train_dataset, two=trainer.train_dataset.select(range(5)))
    assert FromTrainer(trainer).num_examples == 29


# -- what must be equal everywhere


def test_the_fingerprint_stays_while_training_goes_on(build, tmp_path):
    made = FromTrainer(build(tmp_path))
    before = made.fingerprint()
    made.train(ROUND)
    assert FromTrainer(made.trainer).fingerprint() == before
    assert FromTrainer(build(tmp_path)).fingerprint() == before


SCRIPT = """
import sys
from recipes import RECIPES
from fedrag.federated.trainers import FromTrainer
for trainer in (RECIPES["ralt"](sys.argv[1], lora=4), RECIPES["sft"](sys.argv[1])):
    print(FromTrainer(trainer).fingerprint())
"""


def test_the_fingerprint_is_the_same_in_another_process(tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    here = [FromTrainer(make(tmp_path)).fingerprint() for make in (adapted, sft)]
    assert done.stdout.split() == here


def lora(folder, **settings):
    """A small Llama with adapters as `settings` say, beside what is usual."""
    changed = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return plain(folder, get_peft_model(tiny_llama(), LoraConfig(**changed)))


PATTERN = {"rank_pattern": {"layers.0.self_attn.q_proj": 2}}


@pytest.mark.parametrize("settings", [{"r": 8}, {"lora_alpha": 99}, {"lora_dropout": 0.3}, PATTERN], ids=str)
def test_ranks_scales_and_paths_may_differ(settings, tmp_path):
    trainer = lora(tmp_path, **settings)
    trainer.model.peft_config["default"].base_model_name_or_path = "/a/folder/of/this/site"
    assert FromTrainer(trainer).fingerprint() == FromTrainer(lora(tmp_path)).fingerprint()


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["v_proj"]}, {"target_modules": ["q_proj", "v_proj"]}, {"use_dora": True}, {"bias": "all"}],
    ids=str,
)
def test_other_adapters_have_another_fingerprint(settings, tmp_path):
    assert FromTrainer(lora(tmp_path, **settings)).fingerprint() != FromTrainer(lora(tmp_path)).fingerprint()


def _change(model, how):
    if how == "frozen weight":
        model.frozen.weight.data[0, 2] += 1e-3
    elif how == "saved buffer":
        model.table[1] = 7.0
    elif how == "precision":
        model.to(torch.bfloat16)
    elif how == "names":
        model.frozen.bias.requires_grad_(True)
    elif how == "width":
        model.frozen = nn.Linear(4, 2).requires_grad_(False)
    return model


def test_frozen_weights_names_and_precision_are_in_the_fingerprint(tmp_path):
    changes = ["nothing", "frozen weight", "saved buffer", "precision", "names", "width"]
    found = []
    for how in changes:
        torch.manual_seed(0)
        found.append(FromTrainer(plain(tmp_path, _change(Net(), how))).fingerprint())
    assert len(set(found)) == len(changes)
    torch.manual_seed(0)
    model = Net()
    model.one.weight.data += 1.0  # what travels, and what a BatchNorm saw, are no part of it
    model.norm.running_mean += 1.0
    assert FromTrainer(plain(tmp_path, model)).fingerprint() == found[0]


def test_a_frozen_part_of_the_system_and_the_objective_count(tmp_path):
    def told(kind="bert", make=RALT, ignoring=()):
        torch.manual_seed(0)
        rag = tiny_system(kind=kind, lora=4)
        return FromTrainer(RAGTrainer(make(rag), train_dataset=EXAMPLES, args=arguments(tmp_path))).fingerprint(
            ignoring
        )

    class Other(RALT):
        pass

    assert told() == told()
    assert told(make=Other) != told()
    assert told("static") != told()
    assert told("static", ignoring=["retriever/*"]) == told(ignoring=["retriever/*"])
    assert told(ignoring=["retriever/*"]) != told()


def test_what_is_the_sites_own_is_left_out(tmp_path):
    one, other = (FromTrainer(lora(tmp_path, target_modules=targets)) for targets in (["q_proj"], ["q_proj", "v_proj"]))
    assert one.fingerprint(["*v_proj*"]) != other.fingerprint(["*v_proj*"])  # the adapters' configuration still tells
    assert one.fingerprint(["*"]) == other.fingerprint(["*"])
    torch.manual_seed(0)
    wide = Net()
    wide.norm = nn.BatchNorm1d(4).to(torch.bfloat16)
    torch.manual_seed(0)
    assert FromTrainer(plain(tmp_path, wide)).fingerprint(["norm.*"]) == FromTrainer(plain(tmp_path)).fingerprint(
        ["norm.*"]
    )


def test_a_reference_model_is_part_of_the_fingerprint_and_does_not_travel(tmp_path):
    made = FromTrainer(dpo(tmp_path, lora=False))
    assert not any(name.startswith("reference/") for name in made.exchange_state())
    trainer = dpo(tmp_path, lora=False)
    trainer.ref_model.lm_head.weight.data += 1.0
    assert FromTrainer(trainer).fingerprint() != made.fingerprint()


# -- scales


@pytest.mark.parametrize(
    ("build", "scale"),
    [
        (adapted, 2.0),
        (lambda folder: sft(folder, rank=2), 4.0),
        (lambda folder: with_encoder_adapters(folder, 2, 3), 1.5),
    ],
    ids=["generator", "sft", "encoder"],
)
def test_scales_are_told_by_the_pairs_name(build, scale, tmp_path):
    made = FromTrainer(build(tmp_path))
    pairs = {name.split(".lora_A")[0] for name in made.exchange_state() if ".lora_A" in name}
    assert pairs
    assert made.scales() == dict.fromkeys(pairs, scale)


def test_scales_of_adapters_of_another_kind(tmp_path):
    rows = FromTrainer(lora(tmp_path, target_modules=["embed_tokens", "q_proj"], use_rslora=True, r=4, lora_alpha=8))
    assert set(rows.scales().values()) == {4.0}
    assert sum("embed_tokens" in name for name in rows.scales()) == 1
    trainer = lora(tmp_path)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("lora_B" in name)  # FFA-LoRA: A is frozen
    assert set(FromTrainer(trainer).scales().values()) == {2.0}
    assert FromTrainer(RECIPES["contrastive"](tmp_path)).scales() == {}


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            "load_best_model_at_end=True",
        ),
        ({"resume_from_checkpoint": "somewhere"}, "resume_from_checkpoint='somewhere'"),
        ({"bf16_full_eval": True}, "bf16_full_eval=True cannot hold over rounds: evaluating would round"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}, "use 'linear', 'cosine'"),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "steps"}, "lr_scheduler_type='greedy'"),
        ({"optim": "schedule_free_adamw"}, "use 'adamw_torch'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_hold_over_rounds(settings, words, tmp_path):
    trainer = plain(tmp_path)
    trainer.args = arguments(tmp_path, **settings)
    with pytest.raises(ConfigError, match=words):
        FromTrainer(trainer)


def test_schedules_and_callbacks_that_know_of_one_run_alone(tmp_path):
    trainer = plain(tmp_path)
    optimizer = torch.optim.SGD(trainer.model.parameters())
    trainer.optimizer, trainer.lr_scheduler = optimizer, get_linear_schedule_with_warmup(optimizer, 1, 9)
    with pytest.raises(ConfigError, match=r"given a LambdaLR.*name the schedule in lr_scheduler_type"):
        FromTrainer(trainer)
    trainer = plain(tmp_path)
    trainer.add_callback(EarlyStoppingCallback())
    with pytest.raises(ConfigError, match=r"stops early.*Plan\(rounds="):
        FromTrainer(trainer)
    data = [{"x": torch.randn(4)}]
    trainer = Trainer(model_init=Net, args=arguments(tmp_path), train_dataset=data)
    with pytest.raises(ConfigError, match=r"model_init.*give it the model"):
        FromTrainer(trainer)


def test_a_reference_model_that_moves_is_refused(tmp_path):
    trainer = dpo(tmp_path, lora=False)
    trainer.args.sync_ref_model = True
    with pytest.raises(ConfigError, match="sync_ref_model=True"):
        FromTrainer(trainer)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "has no train_dataset"),
        ([], "is empty"),
        (IterableDataset.from_generator(lambda: iter([{"x": [0.0]}])), "IterableDataset has no length"),
    ],
    ids=["none", "empty", "endless"],
)
def test_training_sets_that_weigh_nothing(data, words, tmp_path):
    trainer = plain(tmp_path)
    trainer.train_dataset = data
    with pytest.raises(ConfigError, match=words + ".*give"):
        FromTrainer(trainer)


def test_nothing_to_train(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing to exchange.*give its model adapters"):
        FromTrainer(plain(tmp_path, Net().requires_grad_(False)))


@pytest.mark.parametrize("round", [-1, 3])
def test_rounds_that_the_plan_has_not(round, tmp_path):
    with pytest.raises(InputError, match=f"round {round} of 3"):
        FromTrainer(plain(tmp_path)).train(Segment(round, 3, "north"))


# -- what may be federated


class Mean:
    """The five members, and no Trainer."""

    num_examples = 3

    def exchange_state(self):
        return {"value": torch.zeros(1)}

    def load_exchange_state(self, state):
        pass

    def train(self, segment):
        return {}

    def evaluate(self):
        return {}


def test_trainers_are_wrapped_and_trainables_pass(tmp_path):
    made = trainable(plain(tmp_path))
    assert isinstance(made, FromTrainer)
    assert isinstance(made, Trainable)
    assert isinstance(made, Described)
    assert trainable(made) is made
    mean = Mean()
    assert trainable(mean) is mean


class Counted(Mean):
    def num_examples(self):
        return 3


@pytest.mark.parametrize(
    ("built", "words"),
    [
        (None, "built a NoneType without num_examples, exchange_state.*return a transformers.Trainer"),
        (nn.Linear(1, 1), "built a Linear without num_examples, exchange_state, load_exchange_state, evaluate:"),
        (Mean, "built the class Mean: return"),
        (Counted(), "num_examples of a Counted is a method.*make it a property"),
    ],
    ids=["none", "module", "class", "method"],
)
def test_all_else_is_refused_by_name(built, words):
    with pytest.raises(ConfigError, match=words):
        trainable(built)
