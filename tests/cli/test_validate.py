"""`fedrag validate`: everything that training would stumble over is told before it, with an estimate of its cost."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from fedrag import DenseRetriever, RAGSystem
from fedrag.cli import app
from fedrag.cli.building import examples_of, trainer
from fedrag.cli.estimate import sweeps
from fedrag.cli.recipe import Recipe
from fedrag.cli.validate import examine
from systems import EXAMPLES, tiny_system

TRAINING = {"per_device_train_batch_size": 4, "use_cpu": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    tiny_system(kind="bert").save(folder / "rag")
    rows = [{"question": e.question, "answers": list(e.answers), "positives": list(e.positives)} for e in EXAMPLES]
    write(folder / "train.jsonl", rows[:18])
    write(folder / "dev.jsonl", rows[18:])
    return folder


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def recipe(objective="contrastive", **more):
    stages = [{"objective": objective, "training": dict(TRAINING)}]
    return {"system": "rag", "save_to": "tuned", "train": "train.jsonl", "stages": stages, **more}


def found(**given):
    return examine(Recipe(**recipe(**given)), time_steps=False)


def test_a_good_recipe_is_estimated_and_nothing_is_written(here):
    before = sorted(here.rglob("*"))
    stages = [{"objective": "contrastive", "training": {**TRAINING, "num_train_epochs": 3}}]
    stages += [{"objective": "ralt", "training": {**TRAINING, "max_steps": 7, "save_strategy": "epoch"}}]
    result = examine(Recipe(**recipe(stages=stages, eval="dev.jsonl")))
    assert (result["ok"], result["problems"], result["notes"]) == (True, [], [])
    assert (result["examples"], result["passages"]) == ({"train": 18, "eval": 6}, 24)
    cost = result["estimate"]
    assert [stage["steps"] for stage in cost["stages"]] == [3 * 5, 7]  # 18 examples are five batches of four
    assert all(0 < stage["seconds_per_step"] < stage["seconds"] for stage in cost["stages"])
    assert cost["seconds"] >= sum(stage["seconds"] for stage in cost["stages"])
    assert cost["memory"] > 10**8
    assert cost["disk"] > 2 * sum(path.stat().st_size for path in (here / "rag").rglob("*") if path.is_file())
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("objective", "refresh", "training", "wanted"),
    [
        ("lsr", "epoch", {"num_train_epochs": 1}, (0, 1)),  # of the retriever, the question's side alone
        ("lsr", "epoch", {"num_train_epochs": 3, "gradient_accumulation_steps": 4}, (0, 3)),
        ("lsr-both", "epoch", {"num_train_epochs": 3, "gradient_accumulation_steps": 4}, (3, 3)),
        ("lsr", 2, {"max_steps": 4}, (0, 2)),
        ("lsr-both", "never", {"num_train_epochs": 3}, (1, 1)),
        ("contrastive", "epoch", {"num_train_epochs": 3}, (1, 0)),
        ("ralt", "epoch", {"num_train_epochs": 2}, (0, 1)),
    ],
)
def test_what_is_embedded_and_retrieved_anew_is_counted_as_training_does_it(
    here, monkeypatch, objective, refresh, training, wanted
):
    whole = {key: value for key, value in TRAINING.items() if key != "max_steps"} | training
    name, _, train = objective.partition("-")
    settings = {"train": "both"} if train else {}
    stage = {"objective": name, "settings": settings, "refresh": refresh, "training": whole}
    made = Recipe(**recipe(stages=[stage]))
    rag, rows = RAGSystem.load("rag"), examples_of(made)["train"]
    trained = trainer(rag, made, 1, rows, [], save_strategy="no", disable_tqdm=True)
    done = {"embedded": 0, "retrieved": 0}
    refreshed, retrieved = DenseRetriever.refresh, type(trained.candidates).refresh

    def embedding(self, **settings):
        count = refreshed(self, **settings)
        done["embedded"] += bool(count)
        return count

    def retrieving(self, examples):
        done["retrieved"] += 1
        return retrieved(self, examples)

    monkeypatch.setattr(DenseRetriever, "refresh", embedding)
    monkeypatch.setattr(type(trained.candidates), "refresh", retrieving)
    trained.train()
    assert (done["embedded"], done["retrieved"]) == wanted
    assert sweeps(trained.objective, refresh, trained.args, len(rows)) == wanted


def test_a_federated_recipe_counts_the_steps_of_all_sites_and_rounds(here):
    stages = [{"objective": "ralt", "training": {**TRAINING, "max_steps": 2}}]
    result = examine(Recipe(**recipe(stages=stages, federated={"shards": 3, "rounds": 4})))
    assert result["estimate"]["stages"][0]["steps"] == 3 * 4 * 2
    assert sorted(result["examples"]) == ["site-0", "site-1", "site-2"]


def test_examples_that_an_objective_cannot_use_are_counted(here):
    rows = [
        {"question": "one ?", "answers": ["3"]},
        {"question": "two ?", "positives": ["d1"]},
        {"question": "three ?", "answers": ["3"], "positives": ["nowhere"], "negatives": ["d2", "gone"]},
    ]
    write(here / "odd.jsonl", rows)
    problems = found(train="odd.jsonl")["problems"]
    assert "1 of 3 examples have no positives" in problems[0]
    assert "2 of 4 documents that examples name are not in the store, 'gone' for one" in problems[1]
    (unanswered,) = found(objective="ralt", train="odd.jsonl")["problems"]
    assert unanswered.startswith("stage 1 (ralt): RALT needs an answer to every question, 1 of these 3")
    parts = [{"objective": "contrastive"}, {"objective": "ralt"}]
    stages = [{"objective": "joint", "parts": parts, "training": TRAINING}]
    assert len(found(stages=stages, train="odd.jsonl")["problems"]) == 3


def test_what_is_cut_is_told(here):
    rag = tiny_system(kind="bert")
    from fedrag import Document

    rag.add([Document("clerk " * 300, id="long")], progress=False)
    rag.dense.encoder.model[0].max_seq_length = 64
    rag.top_k = 25
    rag.save(here / "long")
    write(here / "wordy.jsonl", [{"question": "Which key ? " * 60, "answers": ["3"]}])
    notes = " ".join(found(objective="ralt", system="long")["notes"])
    assert "1 of the 25 passages are longer than the 64 tokens that the encoder reads" in notes
    assert "18 of the 18 prompts have no room for all 25 passages" in notes
    (problem,) = found(objective="ralt", train="wordy.jsonl")["problems"]
    assert "1 of 1 training examples do not fit into the generator" in problem


def test_overlap_is_told(here):
    notes = found(eval="train.jsonl")["notes"]
    assert notes[0].startswith("18 of the 18 eval questions are in train too")
    rows = [{"question": "which key has CLERK 1", "answers": ["3"]}, {"question": "new ?", "positives": ["d2"]}]
    write(here / "near.jsonl", rows)
    notes = found(eval="near.jsonl")["notes"]
    assert notes == [
        "1 of the 2 eval questions are in train too: metrics will flatter",
        "1 of the 2 eval questions share a positive with train",
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("train=trian.jsonl", "did you mean 'train.jsonl'?"),
        ("eval=deev.jsonl", "did you mean 'dev.jsonl'?"),
        ("system=rga", "did you mean 'rag'?"),
        ("stages.0.objective=contrastiv", "did you mean 'contrastive'?"),
        ("stages.0.setings={}", "did you mean 'settings'?"),
        ("stages.0.learning_rates.generator=0.1", "stage 1: learning_rates names ['generator']"),
        ("stages.3.refresh=1", "stages has 1 entries"),
    ],
)
def test_a_mistake_is_a_problem_and_exit_1(here, change, complaint):
    (here / "r.yaml").write_text(yaml.safe_dump(recipe()))
    ran = CliRunner().invoke(app, ["validate", "r.yaml", change, "--json"])
    assert ran.exit_code == 1
    result = json.loads(ran.stdout)
    assert result["ok"] is False
    assert complaint in result["problems"][0]


def test_what_people_read(here):
    (here / "r.yaml").write_text(yaml.safe_dump(recipe()))
    ran = CliRunner().invoke(app, ["validate", "r.yaml"])
    assert ran.exit_code == 0
    assert "extrapolated from a few timed steps on this machine" in ran.stdout
    assert ran.stdout.endswith("nothing stands in the way\n")
    bad = CliRunner().invoke(app, ["validate", "r.yaml", "train=nowhere.csv"])
    assert (bad.exit_code, bad.stdout.splitlines()[-1]) == (1, "1 to solve")
