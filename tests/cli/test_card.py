"""`fedrag card`, `fedrag diff` and `fedrag push` on saved systems."""

import json

import pytest
from typer.testing import CliRunner

from fedrag import Example
from fedrag.cli import app
from fedrag.durable import current
from fedrag.evaluation.report import Record, summarize
from systems import tiny_system

METHOD = "Two epochs.\n\n### Data\n\n24 questions.\n\n## Use\n\nWith care."


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_system().save("rag")
    for name, right in (("before", 1), ("after", 4)):
        summarize([Record(Example(f"q{n}", ["a"]), {"f1": float(n < right)}) for n in range(6)]).save(f"{name}.json")
    return tmp_path / "rag"


def fedrag(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_card_is_printed_and_takes_an_evaluation(saved):
    printed = fedrag("card", "rag")
    assert printed.stdout == (current(saved) / "README.md").read_text()
    (saved.parent / "recipe.yaml").write_text("system: rag\ntrain: /home/ann/train.jsonl\nstages:\n- objective: lsr\n")
    words = ["--report", "after.json", "--before", "before.json", "--method", METHOD, "--recipe", "recipe.yaml"]
    done = fedrag("card", "rag", *words)
    assert done.exit_code == 0, done.exception
    text = (current(saved) / "README.md").read_text()
    assert done.stdout == text
    assert "| f1 | 0.167 | 0.667 [" in text
    assert METHOD in text
    assert "- objective: lsr" in text
    assert "/home/ann" not in text
    assert fedrag("card", "rag", *words).stdout == text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "x"], "go with --report"),
        (["--report", "rag/CURRENT"], "is not a report"),
        (["--report", "after.json", "--recipe", "after.txt"], "is no recipe"),
    ],
)
def test_a_card_that_cannot_be_written_is_named_and_stays(saved, words, told):
    (saved.parent / "after.txt").write_text("- a list")
    before = (current(saved) / "README.md").read_text()
    done = fedrag("card", "rag", *words)
    assert done.exit_code == 1
    assert told in str(done.exception)
    assert (current(saved) / "README.md").read_text() == before


def test_diff_tells_what_differs_and_fails_where_asked(saved):
    other = tiny_system(top_k=7)
    other.dense.store.remove(["d3"])
    other.save("other")
    assert fedrag("diff", "rag", "rag").stdout == "the systems are equal\n"
    assert fedrag("diff", "rag", "rag", "--exit-code").exit_code == 0
    done = fedrag("diff", "rag", "other", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["settings"] == {"top_k": [3, 7]}
    assert told["documents"] == {"added": [], "removed": ["d3"], "changed": []}
    assert fedrag("diff", "rag", "other", "--exit-code").exit_code == 1


def test_push_names_what_stops_it(saved):
    readme = current(saved) / "README.md"
    readme.write_text(readme.read_text() + "Made in /home/ann/rag.")
    done = fedrag("push", "rag", "me/rag")
    assert done.exit_code == 1
    assert "path of this machine" in str(done.exception)
