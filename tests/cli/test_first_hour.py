"""What a person meets in the first hour: mistakes told soon and plainly, and no noise of other libraries."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fedrag.cli import app
from systems import EXAMPLES, tiny_system
from tiny import tiny_lfm2, tiny_tokenizer

FEDRAG = [sys.executable, "-c", "from fedrag.cli import main; main()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a system whose reader has adapters over a model that wants kernels, and questions."""
    from fedrag import CausalLM

    folder = tmp_path_factory.mktemp("first hour")
    tokenizer = tiny_tokenizer()
    tiny_lfm2(vocab=len(tokenizer)).save_pretrained(folder / "lfm2")
    tokenizer.save_pretrained(folder / "lfm2")
    system = tiny_system()
    system.generator = CausalLM(str(folder / "lfm2"), lora=2, max_new_tokens=2)
    system.save(folder / "rag")
    row = {"question": EXAMPLES[0].question, "answers": list(EXAMPLES[0].answers)}
    (folder / "test.jsonl").write_text(json.dumps(row))
    return folder


def fedrag(*words, cwd):
    return subprocess.run([*FEDRAG, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_a_question_brings_its_answer_and_no_word_of_other_libraries(place):
    asked = fedrag("ask", "rag", "Which key has clerk 3 ?", cwd=place)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert asked.stderr == ""


@pytest.mark.parametrize("words", [["ask", "rg", "q"], ["evaluate", "rg", "test.jsonl"], ["diff", "rg", "rag"]])
def test_a_system_that_is_not_there_is_told_plainly(place, words):
    done = fedrag(*words, cwd=place)
    assert done.returncode == 1
    assert done.stderr == f"fedrag: rg: no such folder; check the path, the working directory is {place}\n"


@pytest.mark.parametrize(("given", "told"), [("rag", "is a folder"), ("tests.jsonl", "no such file")])
def test_questions_that_cannot_be_read_are_told_before_models_are_opened(place, given, told):
    done = CliRunner().invoke(app, ["evaluate", str(place / "nowhere"), str(place / given)])
    assert told in str(done.exception)
