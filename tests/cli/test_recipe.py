"""Recipes: what is wrong with one is told in one sentence, before anything is loaded."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedrag.cli.building import rehearse, trainer
from fedrag.cli.recipe import Recipe, read_recipe
from fedrag.cli.run import run_recipe
from fedrag.cli.settings import OBJECTIVES
from fedrag.errors import ConfigError
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.ralt import RALT
from fedrag.training.settings import default_arguments
from systems import EXAMPLES, tiny_system

GOOD = "system: rag\nsave_to: tuned\ntrain: t.jsonl\nstages:\n  - objective: lsr\n"


MIX = "  - objective: ralt\n    settings: {{contexts: {}}}\n"


def read(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD.replace("save_to", "saveto"), "unknown key 'saveto'; did you mean 'save_to'?"),
        (GOOD.replace("lsr", "lsrr"), "stages.0.objective"),
        (GOOD + "    setings: {k: 3}\n", "did you mean 'settings'?"),
        (GOOD + "    settings: {temperatur: 3}\n", "stages.0.settings: unknown key 'temperatur'; did you mean"),
        (GOOD + "    settings: {k: many}\n", "stages.0.settings.k: Input should be a valid integer"),
        (GOOD + "    settings: {k: true}\n", "settings.k: Input should be a valid integer, got True"),
        (GOOD + "    settings: {train: neither}\n", "train: Input should be 'query'"),
        (GOOD + "    settings: {temperature: .nan}\n", "temperature: Input should be a finite number"),
        (GOOD + "  - objective: ralt\n    settings: {shuffle: 3}\n", "stages.1.settings.shuffle: "),
        (
            GOOD + MIX.format("{documents: 4, gold: 0.5, rndom: 1}"),
            "contexts: unknown key 'rndom'; did you mean 'random'?",
        ),
        (GOOD + MIX.format("{documents: 4}"), "contexts: gold is missing"),
        (GOOD + MIX.format("{documents: some, gold: 1}"), "contexts.documents: Input should be a valid integer"),
        (GOOD + MIX.format("often"), "settings.contexts: Input should be a valid dictionary"),
        (GOOD.replace("lsr", "joint"), "objective joint with 0 parts; joint takes two or more"),
        (GOOD + "    parts: [{objective: ralt}, {objective: ralt}]\n", "objective lsr with 2 parts"),
        (
            GOOD.replace("lsr", "joint") + "    parts: [{objective: lsr, settings: {kk: 2}}, {objective: ralt}]\n",
            "stages.0.parts.0.settings: unknown key 'kk'",
        ),
        (
            GOOD.replace("lsr", "joint")
            + "    parts: [{objective: lsr}, {objective: ralt}]\n    settings: {turn: 2}\n",
            "did you mean 'turns'?",
        ),
        (GOOD + "    over_retrieve: 0\n", "stages.0.over_retrieve"),
        (GOOD + "    training: {learnin_rate: 3}\n", "did you mean 'learning_rate'?"),
        (GOOD + "    training: {learning_rate: fast}\n", "training.learning_rate: Input should be a valid number"),
        (GOOD + "  - objective: ralt\n    training: {save_strategy: x}\n", "stages.1.training: transformers refuses"),
        (GOOD + "    training: {save_steps: 5}\n", "save_steps does nothing without checkpoints"),
        (GOOD + "    training: {eval_strategy: epoch}\n", "eval_strategy needs examples"),
        (GOOD + "    learning_rates: {retreiver: 1}\n", "learning_rates.retreiver"),
        (GOOD + "    refresh: 0\n", "stages.0.refresh"),
        (GOOD.replace("lsr", "distillation"), "teacher is missing"),
        (GOOD + "    settings: {k: [1, true]}\n", "stages.0.settings.k: "),
        (GOOD.replace("lsr", "contrastive") + "    settings: {mine: {rank: 3}}\n", "did you mean 'ranks'?"),
        (GOOD + MIX.format("{distractors: 2, gold: 0.5, sorce: x}"), "did you mean 'source'?"),
        (GOOD + "federated: {shards: 2}\n", "federated.rounds: "),
        (GOOD + "federated: {shards: 2, rounds: 1, quorom: 2}\n", "did you mean 'quorum'?"),
        (GOOD + "federated: {shards: 2, rounds: 1, quorum: 3}\n", "2 sites cannot meet a quorum of 3"),
        (GOOD + "federated: {rounds: 1}\n", "give either shards: 3, or sites"),
        (GOOD + "federated: {rounds: 1, sites: {'a b': x}}\n", "'a b' is no name for a site"),
        (GOOD.replace("train: t.jsonl\n", ""), "train is missing"),
        (GOOD.replace("tuned", "rag"), "save_to is the system itself"),
        ("3: x\n" + GOOD, "the key 3 is no text"),
        ("a: &a [1, *a]\n", "more than 10000 values"),
        ('system: "a\\0b"\n', "no such character"),
        ("system: rag\nsave_to: tuned\ntrain: t.jsonl\nstages: []\n", "at least 1"),
        ("just a sentence", "a recipe is a mapping"),
        ("a: [", "not valid YAML"),
        ("a: 2020-55-55", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("", "a recipe is a mapping"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path, text, complaint):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert complaint in str(caught.value)


def test_recipes_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no recipe here"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_recipe(tmp_path / "latin.yaml")


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    text = GOOD + "    settings: {k: '8'}\n    training: {learning_rate: 1e-4}\n    learning_rates: {retriever: 1e-5}\n"
    (stage,) = read(tmp_path, text).stages
    assert (stage.settings, stage.training) == ({"k": 8}, {"learning_rate": 1e-4})
    assert (stage.learning_rates, stage.refresh) == ({"retriever": 1e-5}, "epoch")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
TRAINING = ["learning_rate", "save_strategy", "optim", "lr_scheduler_type", "lr_scheduler_kwargs", "report_to", "fsdp"]
TRAINING += ["accelerator_config", "warmup_steps", "logging_strategy", "debug", "max_steps", "fsdp_config", "seed"]
STAGES = st.fixed_dictionaries(
    {"objective": st.sampled_from(list(OBJECTIVES))},
    optional={
        "settings": st.dictionaries(st.sampled_from(["k", "train", "temperature", "shuffle", "x"]), VALUES) | VALUES,
        "training": st.dictionaries(st.sampled_from(TRAINING), VALUES, max_size=3) | VALUES,
        "learning_rates": st.dictionaries(st.sampled_from(["retriever", "x"]), VALUES) | VALUES,
        "refresh": VALUES,
    },
)
RECIPES = st.fixed_dictionaries(
    {name: st.just("here") for name in ("system", "save_to", "train")} | {"stages": st.lists(STAGES | VALUES)},
    optional={"eval": VALUES, "more": VALUES},
)


@given(VALUES | RECIPES, st.booleans())
def test_whatever_a_recipe_holds_only_a_config_error_comes(tmp_path_factory, content, as_json):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(json.dumps(content, default=str) if as_json else yaml.safe_dump(content), encoding="utf-8")
    _only_config_errors(path)


@given(st.binary(max_size=40) | st.text("[]{}:,-?&*!|>%@`'\"#\n 0x_.:eab", max_size=40).map(str.encode))
def test_whatever_bytes_a_recipe_has_only_a_config_error_comes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    _only_config_errors(path)


def _only_config_errors(path):
    try:
        assert isinstance(read_recipe(path), Recipe)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017


# -- carried out


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a saved system and examples; `{0}` in a recipe stands for it."""
    folder = tmp_path_factory.mktemp("workplace")
    tiny_system(kind="bert").save(folder / "rag")
    rows = [json.dumps({"question": e.question, "answers": e.answers, "positives": e.positives}) for e in EXAMPLES]
    (folder / "t.jsonl").write_text("\n".join(rows))
    return folder


def staged(folder, stages):
    head = f"system: {folder}/rag\nsave_to: {folder}/tuned\ntrain: {folder}/t.jsonl\nstages:\n"
    return read(folder, head + stages)


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ("{objective: lsr, settings: {k: 1}}", "stage 2: LSR compares documents, so k must be at least 2, got 1"),
        ("{objective: ralt, learning_rates: {retriever: 0.1}}", "stage 2: learning_rates names"),
        ("{objective: ralt, settings: {contexts: {documents: 0, gold: 1}}}", "stage 2: Mixture takes documents >= 1"),
        ("{objective: ralt, training: {label_smoothing_factor: 0.1}}", "stage 2: label_smoothing_factor"),
    ],
)
def test_a_mistake_in_the_last_stage_shows_before_the_first_has_trained(workplace, second, complaint):
    recipe = staged(workplace, f"  - objective: contrastive\n    training: {{max_steps: 1}}\n  - {second}\n")
    with pytest.raises(ConfigError, match=complaint):
        run_recipe(recipe)
    assert not (workplace / "tuned").exists()
    assert not list(workplace.glob("tuned.run/*/*"))


def test_the_rehearsal_leaves_the_system_as_it_was(workplace):
    recipe = staged(workplace, "  - objective: contrastive\n  - objective: lsr\n")
    rag = tiny_system(kind="bert")
    before = set(rag.named_parameters())
    rehearse(rag, recipe, EXAMPLES)
    assert set(rag.named_parameters()) == before  # LSR's second tower must not be there when the first stage trains


def test_contexts_are_a_mixture_over_the_systems_store(workplace):
    contexts = "{documents: [1, 4], gold: 0.5, random: 1, keep: true, apart: source}"
    recipe = staged(workplace, MIX.format(contexts))
    rag = tiny_system(kind="bert")
    made = trainer(rag, recipe, 1, EXAMPLES, []).objective.contexts
    assert made == Mixture(rag.dense.store, documents=[1, 4], gold=0.5, random=1, keep=True, apart="source")


def test_what_a_stage_sets_lies_over_the_trainers_own_defaults(workplace):
    stages = ["{objective: ralt, training: {max_steps: 7}}", "{objective: ralt, training: {save_strategy: epoch}}"]
    recipe = staged(workplace, "".join(f"  - {stage}\n" for stage in stages))
    rag = tiny_system(kind="bert", lora=2)
    first, second = (trainer(rag, recipe, number, EXAMPLES, []).args for number in (1, 2))
    usual = default_arguments(RALT(rag)).to_dict()
    changed = {name for name, value in first.to_dict().items() if value != usual[name]}
    assert changed == {
        "max_steps",
        "output_dir",
        "save_total_limit",
        "dataloader_pin_memory",
    }  # the trainer itself sets the last
    assert (first.max_steps, first.learning_rate) == (7, 1e-4)
    assert first.output_dir == f"{workplace}/tuned.run/1-ralt"
    assert (second.save_strategy, second.output_dir) == ("epoch", f"{workplace}/tuned.run/2-ralt")


def test_a_joint_stage_trains_its_parts_in_one_loop(workplace):
    joint = "{objective: joint, parts: [{objective: lsr, settings: {k: 3}}, {objective: ralt}], settings: {turns: 2}, "
    joint += "learning_rates: {retriever: 0.01, generator: 0.001}, over_retrieve: 2, training: {max_steps: 3}}"
    rag = tiny_system(kind="bert")
    recipe = staged(workplace, f"  - {joint}\n")
    rehearse(rag, recipe, EXAMPLES)
    made = trainer(rag, recipe, 1, EXAMPLES, [])
    assert [type(part).__name__ for part in made.objective.objectives] == ["LSR", "RALT"]
    assert (made.objective.turns, made.objective.objectives[0].depth) == (2, 3)
    assert (made.candidates.over_retrieve, made.learning_rates) == (2, {"retriever": 0.01, "generator": 0.001})


def test_a_system_with_the_ensemble_reader_is_rehearsed_as_one(workplace):
    rag = tiny_system(kind="bert")
    rag.reader = "ensemble"  # which gives RALT one document per row, as weighting needs
    rehearse(rag, staged(workplace, "  - {objective: ralt, settings: {weighting: posterior}}\n"), EXAMPLES)
