"""The runner of planted bugs: it tells a killed mutant from a survivor, and a rotten list from both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parents[1] / "scripts" / "mutants.py"
CALC = "def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return a * 2\n"
TESTS = (
    "from calc import add, double\n\n\n"
    "def test_add():\n    assert add(2, 3) == 5\n\n\n"
    "def test_lazy():\n    assert double(0) == 0\n\n\n"
    "def test_red():\n    assert add(1, 1) == 3\n"
)
KILLED = {"name": "minus", "old": "a + b", "new": "a - b", "test": "tests/test_calc.py::test_add"}
SURVIVOR = {"name": "triple", "old": "a * 2", "new": "a * 3", "test": "tests/test_calc.py::test_lazy"}


def run(root: Path, *mutants: dict[str, str], options: tuple[str, ...] = ()) -> tuple[int, str]:
    for path, text in (("src/calc/__init__.py", CALC), ("tests/test_calc.py", TESTS)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    entries = [{"file": "src/calc/__init__.py"} | mutant for mutant in mutants]
    lines = ["[[mutant]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in e.items()) for e in entries]
    (root / "tests" / "mutants.toml").write_text("\n".join(lines))
    command = [sys.executable, str(RUNNER), "--root", str(root), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (root / "src/calc/__init__.py").read_text() == CALC
    return done.returncode, done.stdout + done.stderr


def test_a_killed_mutant_is_success_and_the_others_are_not_tried(tmp_path: Path) -> None:
    status, output = run(tmp_path, KILLED, SURVIVOR, options=("--only", "minus"))
    assert "1 mutants: 1 killed, 0 survived, 0 errors" in output
    assert status == 0


ROTTEN = {
    "no such text": ({"old": "a // b"}, "the old text occurs 0 times in src/calc/__init__.py, wanted once"),
    "text there twice": ({"old": "return a"}, "the old text occurs 2 times in src/calc/__init__.py, wanted once"),
    "no such file": ({"file": "src/calc/gone.py"}, "src/calc/gone.py is no file below src/"),
    "not a source": ({"file": "tests/test_calc.py"}, "tests/test_calc.py is no file below src/"),
    "test red before": ({"test": "tests/test_calc.py::test_red"}, "is red without the mutant"),
    "no such test": ({"test": "tests/test_calc.py::test_gone"}, "is red without the mutant"),
    "does not compile": ({"new": "a +"}, "test_add did not run"),
}


def test_survivors_and_rotten_entries_are_reported_each_for_what_it_is(tmp_path: Path) -> None:
    rotten = [KILLED | change | {"name": name} for name, (change, _) in ROTTEN.items()]
    status, output = run(tmp_path, KILLED, SURVIVOR, *rotten)
    lines = {line[10:26].strip(): line for line in output.splitlines()}
    assert lines["minus"].startswith("killed")
    assert lines["triple"].startswith("survived")
    assert "test_lazy stays green" in lines["triple"]
    for name, (_, complaint) in ROTTEN.items():
        assert lines[name].startswith("error")
        assert complaint in lines[name]
    assert "9 mutants: 1 killed, 1 survived, 7 errors" in output
    assert status == 1


def test_a_survivor_alone_is_a_failure(tmp_path: Path) -> None:
    status, output = run(tmp_path, SURVIVOR)
    assert "1 mutants: 0 killed, 1 survived, 0 errors" in output
    assert status == 1


@pytest.mark.parametrize(
    ("mutants", "options", "complaint"),
    [
        ([KILLED, KILLED], (), "repeats a name"),
        ([KILLED | {"new": "a + b"}], (), "changes nothing"),
        ([KILLED | {"tset": "x"}], (), "has the keys file, name, old, new, test, tset"),
        ([KILLED], ("--only", "plus"), "no mutant is named 'plus'; there are: minus"),
        ([], (), "lists no mutant"),
    ],
)
def test_a_malformed_list_is_refused(
    tmp_path: Path, mutants: list[dict[str, str]], options: tuple[str, ...], complaint: str
) -> None:
    status, output = run(tmp_path, *mutants, options=options)
    assert complaint in output
    assert status == 2
