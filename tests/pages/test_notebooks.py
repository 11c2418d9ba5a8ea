"""The runner of the notebooks says which one fails, and refuses outputs of another machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

RUNNER = Path(__file__).parents[2] / "scripts" / "notebooks.py"
NOTEBOOKS = RUNNER.parents[1] / "docs" / "notebooks"


def ran(folder: Path, code: str, *, outputs: bool = False) -> tuple[int, str]:
    cell = nbformat.v4.new_code_cell(code)
    if outputs:
        cell["outputs"] = [nbformat.v4.new_output("stream", text="hello")]
    path = folder / "some.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    done = subprocess.run([sys.executable, str(RUNNER), str(path)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_cell_that_fails_fails_the_run_and_files_stay_in_a_folder_of_their_own(tmp_path: Path) -> None:
    status, told = ran(tmp_path, "open('made.txt', 'w').write('x'); 1 / 0")
    assert status == 1
    assert "some.ipynb: FAILED" in told
    assert "ZeroDivisionError" in told
    assert [path.name for path in tmp_path.iterdir()] == ["some.ipynb"]


def test_a_notebook_with_outputs_is_refused(tmp_path: Path) -> None:
    status, told = ran(tmp_path, "print('hello')", outputs=True)
    assert status == 1
    assert "kept with outputs" in told


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_of_the_documentation_are_valid_and_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
