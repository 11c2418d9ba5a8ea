"""Plant known bugs, one at a time, and demand that a named test turns red for each.

A mutant is a small wrong patch, listed in `tests/mutants.toml`:

    [[mutant]]
    name = "label shift off by one"
    file = "src/fedrag/ops/likelihood.py"
    old = "labels[:, 1:]"                       # occurs exactly once in the file
    new = "labels[:, :-1]"
    test = "tests/ops/test_likelihood.py::test_matches_a_loop"

The sources are copied to a temporary folder, the patch is applied to the copy, and the test runs against the copy. A
mutant is killed when the test fails. It is a defect of the tests when the test passes (the mutant survives), and a
defect of the list when the text is not there once, when the test is red without the mutant, or when it does not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
KEYS = ("name", "file", "old", "new", "test")
SECONDS = 300  # a test that takes longer hangs
PASSED, FAILED = 0, 1  # what pytest exits with; all else means that the test did not run


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong patch and the test that must notice it; paths are relative to the repository."""

    name: str
    file: str
    old: str
    new: str
    test: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: killed, survived, or error with what to repair."""

    mutant: Mutant
    verdict: str
    detail: str = ""
    seconds: float = 0.0


class ListError(Exception):
    """The list of mutants is malformed; the message names the entry."""


def read(path: Path) -> list[Mutant]:
    """Read the list. Raises `ListError` for wrong keys, a repeated name, or a patch that changes nothing."""
    mutants: list[Mutant] = []
    for number, entry in enumerate(tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", []), 1):
        label = f"{path.name}, mutant {number} ({entry.get('name', 'no name')!r})"
        if set(entry) != set(KEYS) or not all(isinstance(value, str) for value in entry.values()):
            raise ListError(f"{label} has the keys {', '.join(entry)}; wanted are the strings {', '.join(KEYS)}")
        if entry["name"] in {mutant.name for mutant in mutants}:
            raise ListError(f"{label} repeats a name; give it another")
        if entry["old"] == entry["new"]:
            raise ListError(f"{label} changes nothing: old and new are equal")
        mutants.append(Mutant(**entry))
    if not mutants:
        raise ListError(f"{path} lists no mutant")
    return mutants


def run_tests(root: Path, source: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests of `root` with the packages in `source` before any installed ones; return exit status and output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS * len(tests),
        )
    except subprocess.TimeoutExpired:
        return -1, f"longer than {SECONDS * len(tests)} s"
    return done.returncode, done.stdout


def last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def copy_sources(root: Path, folder: Path) -> Path:
    shutil.copytree(root / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder / "src"


def try_mutant(root: Path, mutant: Mutant) -> Outcome:
    started = time.monotonic()
    original = root / mutant.file
    if not original.is_file() or not original.is_relative_to(root / "src"):
        return Outcome(mutant, "error", f"{mutant.file} is no file below src/")
    count = original.read_text(encoding="utf-8").count(mutant.old)
    if count != 1:
        return Outcome(mutant, "error", f"the old text occurs {count} times in {mutant.file}, wanted once")
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        source = copy_sources(root, Path(folder))
        patched = source / original.relative_to(root / "src")
        patched.write_text(original.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        status, output = run_tests(root, source, [mutant.test])
    seconds = time.monotonic() - started
    if status == PASSED:
        return Outcome(mutant, "survived", f"{mutant.test} stays green", seconds)
    if status == FAILED:
        return Outcome(mutant, "killed", "", seconds)
    return Outcome(mutant, "error", f"{mutant.test} did not run: {last_line(output)}", seconds)


def red_without_mutant(root: Path, tests: Sequence[str]) -> dict[str, str]:
    """The tests that do not pass on the sources as they are, and why; one run tells when there are none."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        source = copy_sources(root, Path(folder))
        if run_tests(root, source, tests)[0] == PASSED:
            return {}
        results = {test: run_tests(root, source, [test]) for test in tqdm(tests, desc="tests unmutated", unit="test")}
    return {test: last_line(output) for test, (status, output) in results.items() if status != PASSED}


def run(root: Path, mutants: Sequence[Mutant], *, jobs: int) -> list[Outcome]:
    """Try every mutant, `jobs` at a time; outcomes come in the order of the list."""
    red = red_without_mutant(root, sorted({mutant.test for mutant in mutants}))

    def outcome(mutant: Mutant) -> Outcome:
        if mutant.test in red:
            return Outcome(mutant, "error", f"{mutant.test} is red without the mutant: {red[mutant.test]}")
        return try_mutant(root, mutant)

    with ThreadPoolExecutor(jobs) as pool:
        return list(tqdm(pool.map(outcome, mutants), total=len(mutants), desc="mutants", unit="mutant"))


def table(outcomes: Sequence[Outcome]) -> str:
    width = max(len(outcome.mutant.name) for outcome in outcomes)
    lines = [
        f"{outcome.verdict:<8}  {outcome.mutant.name:<{width}}  {outcome.seconds:5.1f} s  "
        f"{outcome.detail or outcome.mutant.test}"
        for outcome in outcomes
    ]
    killed, survived, errors = (
        sum(outcome.verdict == verdict for outcome in outcomes) for verdict in ("killed", "survived", "error")
    )
    return "\n".join([*lines, f"{len(outcomes)} mutants: {killed} killed, {survived} survived, {errors} errors"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="try this mutant only (may be repeated)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at the same time (default: 2)")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="repository with src/ and tests/mutants.toml")
    settings = parser.parse_args()
    root = settings.root.resolve()
    try:
        mutants = read(root / "tests" / "mutants.toml")
        if settings.only:
            names = [mutant.name for mutant in mutants]
            if unknown := [name for name in settings.only if name not in names]:
                raise ListError(f"no mutant is named {unknown[0]!r}; there are: {', '.join(names)}")
            mutants = [mutant for mutant in mutants if mutant.name in settings.only]
        outcomes = run(root, mutants, jobs=max(1, settings.jobs))
    except ListError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(outcomes))
    return 0 if all(outcome.verdict == "killed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
