"""The ready recipes: written whole, true to the schema, and each carried out on a tiny system."""

import json
import re

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from fedrag import RAGSystem
from fedrag.cli import app
from fedrag.cli.init import cases
from fedrag.cli.recipe import Part, Stage, read_recipe
from fedrag.cli.schema import schema
from fedrag.cli.settings import OBJECTIVES, settings_of, training_types
from systems import EXAMPLES, tiny_system


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ready")
    tiny_system(kind="bert", lora=2).save(folder / "my-rag")
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


def command(*words):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("case", sorted(cases()))
def test_a_ready_recipe_runs(here, case):
    assert command("init", case, f"{case}.yaml").exit_code == 0
    many = len(read_recipe(here / f"{case}.yaml").stages)
    small = [f"stages.{n}.training.{setting}" for n in range(many) for setting in ("use_cpu=true", "max_steps=2")]
    ran = command("train", f"{case}.yaml", f"save_to={case}", *small, "--json")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert {"before", "after", "differences"} <= set(json.loads(ran.stdout))
    before, after = (RAGSystem.load(name).named_parameters() for name in ("my-rag", case))
    assert any(name not in before or not p.equal(before[name]) for name, p in after.items())


@pytest.mark.parametrize("case", sorted(cases()))
def test_the_values_beside_the_small_ones_are_good_too(here, case):
    """`rounds: 2  # 10; why` becomes `rounds: 10`, and `# bf16: true` a setting."""
    large = re.sub(r"^(\s+[\w-]+:) \S.*?\s+# ([\d.e\[\], -]*\d\]?)(;.*)?$", r"\1 \2", cases()[case], flags=re.MULTILINE)
    assert large != cases()[case]
    (here / "large.yaml").write_text(large)
    (here / "small.yaml").write_text(cases()[case])
    assert read_recipe(here / "large.yaml") != read_recipe(here / "small.yaml")


def test_init_lists_and_does_not_overwrite(here):
    listed = command("init", "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == sorted(cases())
    (here / "mine.yaml").write_text("my own")
    refused = command("init", "reader", "mine.yaml")
    assert "mine.yaml is there already" in str(refused.exception)
    assert (here / "mine.yaml").read_text() == "my own"
    assert command("init", "reader", "mine.yaml", "--force").exit_code == 0
    assert "fedrag train mine.yaml" in (here / "mine.yaml").read_text()
    assert "the cases are federated, joint" in str(command("init", "raeder", "x.yaml").exception)
    assert "cannot be written" in str(command("init", "reader", "no/such/folder.yaml").exception)


@pytest.fixture(scope="module")
def validator():
    printed = command("schema")
    assert printed.exit_code == 0
    made = json.loads(printed.stdout)
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize("case", sorted(cases()))
def test_ready_recipes_are_true_to_the_schema(validator, case):
    assert not list(validator.iter_errors(yaml.safe_load(cases()[case])))


@pytest.mark.parametrize(
    "stage",
    [
        {"objective": "lsrr"},
        {"objective": "lsr", "settings": {"kk": 3}},
        {"objective": "lsr", "settings": {"k": "many"}},
        {"objective": "lsr", "training": {"learnin_rate": 1}},
        {"objective": "lsr", "training": {"optim": "adamm"}},
        {"objective": "ralt", "settings": {"contexts": {"documents": 4, "golden": 1}}},
        {"objective": "contrastive", "settings": {"mine": {"rank": [0, 3]}}},
        {"objective": "lsr", "refresh": "often"},
        {"objective": "joint", "parts": [{"objective": "lsr", "settings": {"kk": 1}}, {"objective": "ralt"}]},
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(validator, stage):
    assert list(validator.iter_errors({"system": "a", "save_to": "b", "train": "c", "stages": [stage]}))


def test_every_objective_and_setting_is_in_the_schema():
    kinds = schema()["$defs"]
    for name in OBJECTIVES:
        keys = kinds[f"settings-{name}"]["properties"]
        assert set(keys) == set(settings_of(name))
        assert all(key.get("description") for key in keys.values()), name
    assert set(kinds["training"]["properties"]) == set(training_types())
    assert set(Part.model_fields["objective"].annotation.__args__) == set(OBJECTIVES)
    assert set(kinds["Stage"]["properties"]) == set(Stage.model_fields)
