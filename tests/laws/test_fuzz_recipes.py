"""Whatever a recipe holds, and whatever is changed in it, reading it gives a right recipe or one named error."""

import contextlib
import copy
import json

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from fedrag.cli.init import cases
from fedrag.cli.overrides import override
from fedrag.cli.recipe import Recipe, read_recipe
from fedrag.cli.settings import OBJECTIVES, settings_of, training_types
from fedrag.errors import ConfigError

MANY = settings(
    max_examples=1650, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
READY = [yaml.safe_load(text) for _, text in sorted(cases().items())]
KEYS = sorted({key for name in OBJECTIVES for key in settings_of(name)} | set(training_types()))
WORDS = st.sampled_from([*KEYS, *OBJECTIVES, *Recipe.model_fields, "shards", "sites", "rounds", "parts", "contexts"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 10**400, float("nan"), float("inf"), -0.0, "1e-4", "~", "", "no", "epoch", "0x1f"])
    | st.floats()
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=4)
    | WORDS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value, here=()):
    """Every place of a nested structure."""
    yield here
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*here, key))


@st.composite
def mutated(draw):
    """A ready recipe with a few keys or values replaced, added, misspelt, moved or removed."""
    whole = {"recipe": copy.deepcopy(draw(st.sampled_from(READY)))}
    for _ in range(draw(st.integers(1, 3))):
        spots = [spot for spot in places(whole) if spot]
        *path, last = draw(st.sampled_from(spots))
        within = whole
        for key in path:
            within = within[key]
        match draw(st.sampled_from(["replace", "add", "misspell", "move", "remove"])):
            case "replace":
                within[last] = draw(VALUES)
            case "add" if isinstance(within[last], dict):
                within[last][draw(WORDS | st.text(max_size=5))] = draw(VALUES)
            case "misspell" if isinstance(within, dict) and isinstance(last, str) and len(last) > 2:
                within[last[:-2] + last[-1]] = within.pop(last)
            case "move":
                within[last] = copy.deepcopy(draw(st.sampled_from([_at(whole, spot) for spot in spots])))
            case "remove" if path:
                within.pop(last)
    return next(iter(whole.values()), None)


def _at(value, path):
    for key in path:
        value = value[key]
    return value


def is_right(recipe):
    """What it says is what its objectives and the Trainer take, and writing it down again changes nothing."""
    assert recipe.stages
    for stage in recipe.stages:
        for part in (stage, *stage.parts):
            assert set(part.settings) <= set(settings_of(part.objective))
        TrainingArguments(**{"output_dir": "x", "report_to": "none", "save_strategy": "no", **stage.training})
    again = Recipe(**json.loads(recipe.model_dump_json()))
    assert again.model_dump(mode="json") == recipe.model_dump(mode="json")


def reads(path, changes=()):
    try:
        recipe = read_recipe(path, changes)
    except ConfigError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        assert len(str(error)) < 20_000  # noqa: PT017
    else:
        is_right(recipe)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "recipe.yaml"


@pytest.mark.slow
@MANY
@given(mutated())
def test_a_ready_recipe_with_mistakes(path, content):
    path.write_text(yaml.safe_dump(content, allow_unicode=False), encoding="utf-8")
    reads(path)


TEXTS = [text for _, text in sorted(cases().items())]


@pytest.mark.slow
@MANY
@given(st.sampled_from(TEXTS), st.data())
@example(TEXTS[0], None)
def test_a_recipes_text_with_pieces_cut_out_and_put_in(path, text, data):
    for _ in range(data.draw(st.integers(1, 4)) if data else 0):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 30)))
        put = data.draw(st.text("[]{}:,-?&*!|>%@`'\"#\n 0x_.:eab\t~<=", max_size=6) | st.text(max_size=3) | WORDS)
        text = text[:start] + put + text[end:]
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    reads(path)


KEY = WORDS | st.sampled_from(["stages", "0", "1", "-1", "training", "settings", "federated", "9" * 30, "²", ""])
CHANGES = st.lists(
    st.builds(
        "{}={}".format,
        st.lists(KEY, min_size=1, max_size=4).map(".".join),
        st.text(max_size=6) | VALUES.map(lambda value: json.dumps(value, default=str)) | WORDS,
    )
    | st.text(max_size=12),
    max_size=3,
)


@pytest.mark.slow
@MANY
@given(st.sampled_from(READY), CHANGES)
def test_changes_from_the_command_line(path, ready, changes):
    path.write_text(yaml.safe_dump(ready), encoding="utf-8")
    before = copy.deepcopy(ready)
    with contextlib.suppress(ConfigError):
        override(ready, changes)
    assert ready == before
    reads(path, changes)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["optim", "seed", "max_steps"]), st.integers(0, 10**6))
def test_a_change_is_what_the_file_would_say(path, key, number):
    """An override and the same value in the file are one."""
    ready = copy.deepcopy(READY[0])
    path.write_text(yaml.safe_dump(ready), encoding="utf-8")
    value = "sgd" if key == "optim" else number
    changed = read_recipe(path, [f"stages.0.training.{key}={value}"])
    ready["stages"][0]["training"][key] = value
    path.write_text(yaml.safe_dump(ready), encoding="utf-8")
    assert read_recipe(path) == changed
    assert changed.stages[0].training[key] == value
