"""`fedrag train` carried out: stopped and gone on with, federated, with its results where programs find them."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fedrag import RAGSystem
from fedrag.cli import app
from fedrag.cli.building import examples_of, trainer
from fedrag.cli.recipe import Recipe, read_recipe
from fedrag.cli.run import run_recipe
from fedrag.errors import ConfigError, StoreError
from fedrag.evaluation import Report
from fedrag.federated import Plan
from systems import EXAMPLES, tiny_system

TRAINING = {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a saved system and examples."""
    folder = tmp_path_factory.mktemp("training")
    tiny_system(kind="bert", lora=2, dropout=0.1).save(folder / "rag")
    rows = [
        json.dumps({"question": e.question, "answers": list(e.answers), "positives": list(e.positives)})
        for e in EXAMPLES
    ]
    (folder / "train.jsonl").write_text("\n".join(rows[:18]))
    (folder / "dev.jsonl").write_text("\n".join(rows[18:]))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def recipe(name, **more):
    stages = [
        {"objective": "lsr", "settings": {"k": 3}, "training": {**TRAINING, "logging_steps": 1}},
        {"objective": "ralt", "training": {**TRAINING, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}},
    ]
    given = {"system": "rag", "save_to": name, "train": "train.jsonl", "stages": stages, **more}
    return {key: value for key, value in given.items() if value is not None}


def weights(folder):
    return RAGSystem.load(folder).named_parameters()


def same(one, two):
    a, b = weights(one), weights(two)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


SLOW_STEPS = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and their children
from fedrag.training.trainer import RAGTrainer
whole = RAGTrainer.compute_loss
def slowly(self, *args, **settings):
    print("step", flush=True, file=sys.__stdout__)
    time.sleep(0.5)
    return whole(self, *args, **settings)
RAGTrainer.compute_loss = slowly
from fedrag.cli import main
main()
"""


def train(folder, *words, steps, number):
    """The command, with a signal in the middle of a step."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys\n{SLOW_STEPS}", "train", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for _ in range(steps):
        assert child.stdout.readline() == "step\n"
    child.send_signal(number)
    _, errors = child.communicate(timeout=90)
    return child.returncode, errors


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_ends_with_the_same_bits(here):
    run_recipe(Recipe(**recipe("straight", eval="dev.jsonl")))
    (here / "r.yaml").write_text(yaml.safe_dump(recipe("tuned", eval="dev.jsonl")))
    code, errors = train(here, "r.yaml", steps=2, number=signal.SIGINT)
    assert code == 130, errors
    assert "stopping after this step" in errors
    assert "what is done is kept in tuned.run; the same command with --resume goes on" in errors
    assert [path.name for path in (here / "tuned.run").glob("1-lsr/checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(ConfigError, match=r"tuned\.run holds a run that did not end: go on with it by --resume"):
        run_recipe(read_recipe(here / "r.yaml"))
    code, _ = train(here, "r.yaml", "--resume", steps=2 + 3, number=signal.SIGKILL)  # in the third step of stage two
    assert code == -signal.SIGKILL
    assert (here / "tuned.run" / "1-lsr" / "system").is_dir()
    with pytest.raises(ConfigError, match=r"begun with stages.1.training.max_steps=4, the recipe now has 5"):
        run_recipe(read_recipe(here / "r.yaml", ["stages.1.training.max_steps=5"]), resume=True)
    result = run_recipe(read_recipe(here / "r.yaml"), resume=True)
    assert same("straight", "tuned")
    logs = [json.loads(line) for line in (here / "tuned.run" / "log.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in logs if "loss" in row]
    assert steps == [(stage, step) for stage in (1, 2) for step in (1, 2, 3, 4)]
    assert Report.load(here / "tuned.run" / "after.json") == Report.load(here / "straight.run" / "after.json")
    assert not list((here / "tuned.run").glob("*/checkpoint-*"))  # nothing goes on from them any more
    assert not list((here / "tuned.run").glob("*/system"))
    assert run_recipe(read_recipe(here / "r.yaml"), resume=True) == result  # all is done: told again


def test_half_a_checkpoint_is_not_gone_on_from(here):
    made = Recipe(**recipe("halves"))
    run_recipe(made)
    from fedrag.cli.runs import Run

    run = Run(made, resume=True)
    folder = here / "halves.run" / "2-ralt"
    for step, state in ((2, '{"global_step": 2}'), (3, '{"global_st'), (10, None)):
        (folder / f"checkpoint-{step}").mkdir()
        if state is not None:
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert run.checkpoint(2) == folder.relative_to(here) / "checkpoint-2"
    assert run.checkpoint(1) is None


def test_other_data_is_not_gone_on_with(here):
    (here / "own.jsonl").write_text((here / "train.jsonl").read_text())
    made = Recipe(**recipe("other", train="own.jsonl"))
    run_recipe(made)
    with (here / "own.jsonl").open("a") as file:
        file.write('\n{"question": "more?", "answers": ["3"]}')
    with pytest.raises(ConfigError, match=r"own\.jsonl is not what it was"):
        run_recipe(made, resume=True)


def test_another_system_is_not_gone_on_with_and_no_secret_is_kept(here):
    from fedrag.cli.runs import Run

    few = [{"objective": "lsr", "settings": {"k": 3}, "training": {**TRAINING, "hub_token": "hf_secret"}}]
    tiny_system(kind="bert", lora=2).save(here / "base")
    made = Recipe(**recipe("based", system="base", stages=few))
    Run(made, resume=False)
    assert "hf_secret" not in (here / "based.run" / "run.json").read_text()
    Run(made, resume=True)
    RAGSystem.load("base").save("base")
    with pytest.raises(ConfigError, match=r"base was saved again since based\.run was begun"):
        Run(made, resume=True)


def test_data_that_changed_while_it_trained_is_what_it_was_at_the_start(here):
    from fedrag.cli.runs import Run

    (here / "moving.jsonl").write_text((here / "train.jsonl").read_text())
    made = Recipe(**recipe("moving", train="moving.jsonl"))
    run = Run(made, resume=False)
    (here / "moving.jsonl").write_text((here / "dev.jsonl").read_text())
    run.end()
    with pytest.raises(ConfigError, match=r"moving\.jsonl is not what it was"):
        Run(made, resume=True)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (".", "names no folder of its own"),
        ("/", "names no folder of its own"),
        ("..", "names no folder of its own"),
        ("../training/rag", "save_to is the system itself"),
        ("notes", "was not written by fedrag"),
        ("train.jsonl", "is a file"),
    ],
)
def test_where_nothing_can_be_saved_is_told_before_training(here, target, complaint):
    (here / "notes").mkdir(exist_ok=True)
    (here / "notes" / "mine.txt").write_text("mine")
    target = target.replace("training", here.name)
    with pytest.raises((ConfigError, StoreError), match=complaint):
        run_recipe(Recipe(**recipe(target)))
    assert not list((here / f"{target}.run").glob("*/metrics.json"))


@pytest.mark.parametrize("key", ["output_dir", "resume_from_checkpoint"])
def test_settings_that_would_hide_checkpoints_are_refused(key):
    stages = [{"objective": "lsr", "training": {key: "elsewhere"}}]
    with pytest.raises(ConfigError, match=f"training.{key} is not for a recipe"):
        Recipe(**recipe("hidden", stages=stages))


def test_the_result_is_one_json_object_and_overrides_hold(here):
    (here / "j.yaml").write_text(yaml.safe_dump(recipe("as-json", eval="dev.jsonl")))
    ran = CliRunner().invoke(app, ["train", "j.yaml", "save_to=changed", "stages.0.training.max_steps=1", "--json"])
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.stdout)
    assert (result["saved_to"], result["run"]) == ("changed", "changed.run")
    assert [stage["objective"] for stage in result["stages"]] == ["lsr", "ralt"]
    assert result["differences"]["exact_match"]["n"] == result["before"]["exact_match"]["n"] == 6
    logs = [json.loads(line) for line in (here / "changed.run" / "log.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in logs if row["stage"] == 1) == 1
    assert not (here / "as-json").exists()


def test_the_last_line_says_where_things_are(here):
    (here / "l.yaml").write_text(yaml.safe_dump(recipe("told")))
    ran = CliRunner().invoke(app, ["train", "l.yaml", "stages.0.training.max_steps=1", "stages.1.training.max_steps=1"])
    assert ran.stdout.splitlines()[-1] == "saved in told; log and reports in told.run"


def test_a_folder_that_is_no_runs_stays_as_it_is(here):
    (here / "own.run").mkdir()
    (here / "own.run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"own\.run is no folder of a run"):
        run_recipe(Recipe(**recipe("own")))
    assert (here / "own.run" / "notes.txt").read_text() == "mine"


def test_several_processes_are_refused_and_a_finished_run_begins_anew(here, monkeypatch):
    few = [{"objective": "lsr", "settings": {"k": 3}, "training": {**TRAINING, "max_steps": 1}}]
    made = Recipe(**recipe("again", stages=few))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun started several"):
        run_recipe(made)
    assert not (here / "again.run").exists()
    monkeypatch.delenv("WORLD_SIZE")
    assert run_recipe(made)["stages"][0]["train_loss"] == run_recipe(made)["stages"][0]["train_loss"]


FEDERATED = {"shards": 2, "rounds": 2, "seed": 3}


def test_a_federated_recipe_is_what_the_trainer_federates(here):
    stages = [{"objective": "ralt", "training": {**TRAINING, "max_steps": 2}}]
    made = Recipe(**recipe("federated", stages=stages, federated=FEDERATED))
    result = run_recipe(made)
    assert result["stages"][0]["rounds"] == 2
    rag = RAGSystem.load("rag")
    shards = examples_of(made)
    assert sorted(map(len, shards.values())) == [9, 9]
    alone = trainer(rag, made, 1, [row for rows in shards.values() for row in rows], [])
    alone.federate(shards, Plan(rounds=2, seed=3, evaluate=False), progress=False)
    tuned = weights("federated")
    assert all(torch.equal(tuned[name], p) for name, p in rag.named_parameters().items())
    run_recipe(Recipe(**recipe("central", stages=stages)))
    assert not same("federated", "central")


def test_a_federated_run_goes_on_from_its_last_round(here):
    stages = [{"objective": "ralt", "training": {**TRAINING, "max_steps": 2}}]
    run_recipe(Recipe(**recipe("whole", stages=stages, federated=FEDERATED)))
    made = Recipe(**recipe("stopped", stages=stages, federated=FEDERATED))
    from fedrag.training.trainer import RAGTrainer

    count, train = 0, RAGTrainer.train

    def stop(self, *args, **settings):
        nonlocal count
        count += 1
        if count == 4:  # the second site of the second round
            raise KeyboardInterrupt
        return train(self, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RAGTrainer, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(made)
        count = 10
        run_recipe(made, resume=True)
    assert count == 12  # the two sites of the second round alone
    logs = [json.loads(line) for line in (here / "stopped.run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logs] == [1, 2]
    assert same("whole", "stopped")
