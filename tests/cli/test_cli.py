"""The command in real processes, with tiny models in folders, as a person would use it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedrag import RAGSystem
from fedrag.cli import app
from fedrag.cli.recipe import read_recipe
from fedrag.errors import ConfigError
from tiny import tiny_llama, tiny_sentence_transformer, tiny_tokenizer

FEDRAG = [sys.executable, "-c", "from fedrag.cli import main; main()"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_sentence_transformer(kind="static").save(str(folder / "encoder"), create_model_card=False)
    tokenizer = tiny_tokenizer()
    tiny_llama(vocab=len(tokenizer)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return ["--encoder", str(folder / "encoder"), "--generator", str(folder / "llm"), "--lora", "2", "--top-k", "2"]


@pytest.fixture
def workplace(tmp_path):
    (tmp_path / "docs").mkdir()
    for n in range(6):
        (tmp_path / "docs" / f"clerk{n}.txt").write_text(f"The key of clerk {n} is {n * 3} .")
    rows = [{"question": f"Which key has clerk {n} ?", "answers": [str(n * 3)]} for n in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def fedrag(*words, cwd: Path, **settings):
    return subprocess.run([*FEDRAG, *words], cwd=cwd, capture_output=True, text=True, timeout=120, **settings)


@pytest.mark.parametrize("command", ["", "index", "ask", "train", "evaluate", "quickstart"])
def test_help_fits_a_screen(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert len(result.output.rstrip().splitlines()) <= (24 if command else 36)  # a line for each subcommand


@pytest.mark.slow
def test_index_ask_train_evaluate(workplace, models):
    made = fedrag("index", "docs", "rag", *models, cwd=workplace)
    assert made.returncode == 0, made.stderr
    assert "6 passages" in made.stdout

    asked = fedrag("ask", "rag", "Which key has clerk 3 ?", cwd=workplace)
    assert asked.returncode == 0, asked.stderr
    answer = RAGSystem.load(workplace / "rag").query("Which key has clerk 3 ?")
    # a random model writes control characters too, which a terminal would obey
    assert asked.stdout.startswith("".join(c if c.isprintable() or c in "\n\t" else " " for c in answer.text))
    assert all(hit.document.id in asked.stdout for hit in answer.hits)

    (workplace / "recipe.yaml").write_text(
        "system: rag\nsave_to: tuned\ntrain: train.jsonl\neval: train.jsonl\nstages:\n"
        "  - objective: lsr\n    settings: {k: 3}\n    training: {max_steps: 2, use_cpu: true}\n"
        "  - objective: ralt\n    training: {max_steps: 2, use_cpu: true, learning_rate: 0.01}\n"
    )
    trained = fedrag("train", "recipe.yaml", cwd=workplace)
    assert trained.returncode == 0, trained.stderr
    assert "exact_match" in trained.stdout
    before, after = RAGSystem.load(workplace / "rag"), RAGSystem.load(workplace / "tuned")
    assert after.dense.encoder.two_towers
    changed = {
        name
        for name, p in after.named_parameters().items()
        if name.startswith("generator") and not p.equal(before.named_parameters()[name])
    }
    assert changed
    assert all("lora_" in name for name in changed)

    measured = fedrag("evaluate", "rag", "train.jsonl", "--save", "before.json", cwd=workplace)
    assert measured.returncode == 0, measured.stderr
    compared = fedrag("evaluate", "tuned", "train.jsonl", "--compare", "before.json", cwd=workplace)
    assert compared.returncode == 0, compared.stderr
    assert "difference" in compared.stdout


SLOW_INDEX = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and their children
from fedrag.encoders.sentence import SentenceEncoder
whole = SentenceEncoder.encode_documents
def slowly(self, texts):
    print("batch", flush=True)
    time.sleep(0.2)
    return whole(self, texts)
SentenceEncoder.encode_documents = slowly
from fedrag.cli import main
main()
"""


@pytest.mark.slow
def test_ctrl_c_while_indexing_keeps_what_is_done_and_the_same_command_goes_on(workplace, models):
    texts = "\n".join(json.dumps({"id": f"p{n}", "text": f"passage {n}"}) for n in range(3000))
    (workplace / "many.jsonl").write_text(texts)
    command = ["index", "many.jsonl", "rag", *models]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_INDEX, *command],
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(20):  # the first window of sixteen batches is stored, the second begun
        assert child.stdout.readline() == "batch\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the same command goes on" in errors
    assert len(RAGSystem.load(workplace / "rag").dense.store) == 1024
    again = fedrag(*command[:3], cwd=workplace)
    assert again.returncode == 0, again.stderr
    assert len(RAGSystem.load(workplace / "rag").dense.store) == 3000


@pytest.fixture
def index(workplace, models, monkeypatch):
    """`fedrag index` in this process; with the models of the system, where it is a new one."""
    monkeypatch.chdir(workplace)

    def go(*words, new=True):
        return CliRunner().invoke(app, ["index", *words, "rag", *(models if new else [])])

    return go


def stored(workplace):
    return {document.id: document.text for document in RAGSystem.load(workplace / "rag").dense.store.documents()}


def test_what_a_source_no_longer_has_leaves_the_store(workplace, index):
    (workplace / "docs" / "clerk0.txt").write_text("one two three four five six")
    cut = ["--chunk-tokens", "2", "--overlap", "0"]
    assert index("docs", *cut).exit_code == 0
    before = stored(workplace)
    (workplace / "docs" / "clerk0.txt").write_text("one two tree")
    (workplace / "docs" / "clerk1.txt").unlink()
    result = index("docs", *cut, new=False)
    assert result.exit_code == 0
    assert "; 5 removed" in result.stdout
    after = stored(workplace)
    assert {id: after.get(id) for id in before if after.get(id) != before[id]} == {
        "docs/clerk0.txt#1": "tree",
        "docs/clerk0.txt#2": None,
        **{id: None for id in before if id.startswith("docs/clerk1.txt")},
    }


def test_two_folders_and_a_table_live_side_by_side(workplace, index):
    (workplace / "more").mkdir()
    (workplace / "more" / "clerk0.txt").write_text("another clerk")
    for number in (1, 2):  # rows of one source, whose ids look like those of pieces
        (workplace / f"{number}.jsonl").write_text(json.dumps({"id": f"c#{number}", "text": "x", "source": "web"}))
    assert index("docs").exit_code == 0
    for path in ("more", "1.jsonl", "2.jsonl"):
        result = index(path, "--chunk-tokens", "0", new=False)
        assert result.exit_code == 0
        assert "removed" not in result.stdout
    found = stored(workplace)
    assert len(found) == 9
    assert {"docs/clerk0.txt#0", "more/clerk0.txt#0", "c#1", "c#2"} <= set(found)


def test_settings_that_an_existing_system_cannot_take_are_refused(workplace, index, models):
    assert index("docs").exit_code == 0
    for option, value in zip(models[::2], ("other", "other", "3", "9"), strict=True):
        with pytest.raises(ConfigError, match=f"rag is a system already, which {option} cannot change"):
            raise index("docs", option, value, new=False).exception
    assert index("docs", *models, new=False).exit_code == 0  # what it was made with is no change


@pytest.mark.parametrize(("option", "name"), [("--encoder", "no/such-model"), ("--generator", "no name!")])
def test_a_model_that_cannot_be_had_is_named(workplace, models, option, name):
    settings = [*models]
    settings[settings.index(option) + 1] = name
    result = fedrag("index", "docs", "rag", *settings, cwd=workplace)
    assert result.returncode == 1
    assert f"{option[2:]} {name!r} cannot be loaded: pass the folder of a model" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_mistake_is_one_line_and_no_traceback(workplace):
    began = time.monotonic()
    result = fedrag("ask", "nowhere", "what?", cwd=workplace)
    assert result.returncode == 1
    assert result.stderr.startswith("fedrag: nowhere")
    assert "Traceback" not in result.stderr
    assert time.monotonic() - began < 60


def recipe(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_the_example_recipe_is_a_good_one(tmp_path):
    printed = CliRunner().invoke(app, ["train", "--example"])
    stages = read_recipe(recipe(tmp_path, printed.output)).stages
    assert [stage.objective for stage in stages] == ["lsr", "ralt", "joint"]
