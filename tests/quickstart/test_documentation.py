from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytest

from fedrag.errors import InputError
from fedrag.quickstart.documentation import (
    PACKAGES,
    Documentation,
    read_documentation,
    summary_and_body,
    without_near_duplicates,
)
from fedrag.types import Example

STDLIB = {"stdlib": PACKAGES["stdlib"]}


@pytest.fixture(scope="module")
def stdlib() -> Documentation:
    return read_documentation(STDLIB, progress=False)


def test_passages_and_questions_belong_together(stdlib: Documentation) -> None:
    documents = {document.id: document for document in stdlib.documents}
    assert len(documents) == len(stdlib.documents) > 500
    assert len({document.text for document in stdlib.documents}) == len(documents)
    for example in (*stdlib.train, *stdlib.dev, *stdlib.test):
        (gold,) = (documents[id] for id in example.positives)
        assert gold.metadata == example.metadata
        assert gold.metadata["name"] == gold.id
        assert gold.id.startswith(gold.metadata["module"] + ".")
        assert len(gold.text.split()) <= 110
    sample = next(
        e for part in (stdlib.train, stdlib.dev, stdlib.test) for e in part if e.positives == ("heapq.merge",)
    )
    assert sample.question == "Merge multiple sorted inputs into a single sorted output."
    assert documents["heapq.merge"].text.startswith("Similar to sorted(itertools.chain(*iterables)) but")


def test_modules_and_questions_are_disjoint(stdlib: Documentation) -> None:
    parts = (stdlib.train, stdlib.dev, stdlib.test)
    assert all(parts)
    modules = [{example.metadata["module"] for example in part} for part in parts]
    assert sum(map(len, modules)) == len(set().union(*modules))
    questions = [example.question.lower() for part in parts for example in part]
    assert len(set(questions)) == len(questions)


def test_the_same_again(stdlib: Documentation) -> None:
    assert read_documentation(STDLIB, progress=False) == stdlib
    assert read_documentation(STDLIB, seed=1, progress=False).test != stdlib.test


def test_near_duplicates_leave_the_held_out_part() -> None:
    texts = {
        "train": "one two three four five six seven eight nine ten",
        "same": "one two three four five six and more words come here now",  # 3 of its 9 runs of four
        "other": "one two three four come what may in this new text",  # 1 of 8
        "spread": "completely new words stand here",
    }
    train = [Example("Return the mean of the array", positives=["train"])]
    held_out = [
        Example("A question of its own", positives=["same"]),
        Example("Another question here", positives=["other"]),
        Example("Return the mean of the values", positives=["spread"]),  # 4 of its 5 pairs of words
        Example("Return the first of all values", positives=["spread"]),
    ]
    kept = without_near_duplicates(held_out, train, texts)
    assert [example.question for example in kept] == [held_out[1].question, held_out[3].question]


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("Only a summary.", None),
        ("f(x, y)\n\nAdd two\nnumbers.\n\nThe rest.", ("Add two numbers.", "The rest.")),
        ("Add.\n\nNotes\n-----\n\nSee :func:`~a.b` and ``c``.\n\n.. math:: x\n", ("Add.", "Notes\nSee a.b and c.")),
        ("", None),
        ("f(x)", None),
    ],
)
def test_summary_and_body(docstring: str, wanted: tuple[str, str] | None) -> None:
    assert summary_and_body(docstring) == wanted


def test_packages_that_cannot_be_imported_or_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "talkative"
    package.mkdir()
    body = "\n\n    " + "It has a long story, which nobody would want to read to its end, were it not for this test.\n"
    function = 'def f{0}():\n    """Tell what happens here, number {0}.' + body + '    And so on, {0} times."""\n'
    (package / "__init__.py").write_text("import warnings\nwarnings.warn('hear me')\nprint('hello')\n")
    (package / "_private.py").write_text(function.format(0))
    (package / "test_it.py").write_text(function.format(1))
    (package / "needy.py").write_text("import a_package_that_is_not_there\n" + function.format(2))
    for number in range(3, 9):
        (package / f"part{number}.py").write_text(function.format(number))
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_documentation({"absent": ["no_such_package"], "talkative": ["talkative"]}, progress=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "talkative"]:
        del sys.modules[name]
    assert [document.id for document in found.documents] == [f"talkative.part{n}.f{n}" for n in range(3, 9)]
    assert capfd.readouterr() == ("", "")
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "the documentation of no_such_package is left out: it cannot be imported")
    ]


def test_no_documentation_at_all() -> None:
    with pytest.raises(InputError, match="no documentation in absent"):
        read_documentation({"absent": ["no_such_package"]}, progress=False)


@pytest.mark.slow
def test_all_packages_give_enough_questions() -> None:
    found = read_documentation(progress=False)
    assert {document.metadata["package"] for document in found.documents} == set(PACKAGES)
    assert len(found.test) >= 1000
    assert len(found.dev) >= 500
