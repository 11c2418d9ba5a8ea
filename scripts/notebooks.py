"""Run the notebooks of docs/notebooks, so that what they show is what the library does.

Each runs from its first cell to its last, in a kernel of this environment and in a temporary folder of its own. The
files are kept without outputs, which would be another machine's; a notebook with outputs, or one whose cell fails, is
an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"


def run(path: Path, *, seconds: int = 120) -> str:
    """Run one notebook; return what is wrong with it, or nothing."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells):
        return "it is kept with outputs: clear them before it is saved"
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        client = NotebookClient(
            notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            return str(error)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to run (default: those in docs/notebooks)")
    failed = 0
    for path in parser.parse_args(arguments).notebooks or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        wrong = run(path)
        failed += bool(wrong)
        print(f"{path.name}: {'FAILED: ' + wrong if wrong else 'ok'}, {time.monotonic() - started:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
