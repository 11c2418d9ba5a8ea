"""`import fedrag` is cheap: it loads none of the heavy libraries, and neither do the records and errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "sentence_transformers", "flwr", "numpy", "datasets", "pyarrow", "scipy", "peft"}


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "statement",
    [
        "import fedrag",
        "import fedrag; dir(fedrag), fedrag.__all__, fedrag.__version__",
        "from fedrag import Answer, Document, Example, FedRAGError, Hit, Media",
    ],
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    assert HEAVY & loaded_after(statement) == set()


def test_the_check_sees_a_heavy_import() -> None:
    assert "numpy" in loaded_after("import numpy")
