"""What imports cost and need: `import fedrag` loads nothing heavy, and the package uses only libraries it declares."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

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


def undeclared_imports(source: Path, pyproject: Path) -> list[str]:
    """Libraries that the package imports and its users do not get, being absent or among the `dev` extra."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    wanted = [*project["dependencies"], *(line for extra, lines in extras.items() if extra != "dev" for line in lines)]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in wanted}
    homes = packages_distributions()
    found: list[str] = []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for top in {name.split(".")[0] for name in names} - {source.name, *sys.stdlib_module_names}:
                if not declared & {home.lower().replace("_", "-") for home in homes.get(top, [top])}:
                    found.append(f"{path.relative_to(source)}: {top} is not among the dependencies in pyproject.toml")
    return found


def test_imports_are_declared() -> None:
    found = undeclared_imports(REPOSITORY / "src" / "fedrag", REPOSITORY / "pyproject.toml")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("import os, torch.nn\nfrom fedrag import rag\nfrom ir_measures import nDCG\n", 0),
        ("import pytest\n", 1),
        ("def f():\n    from hypothesis.strategies import text\n", 1),
        ("import no_such_library\n", 1),
    ],
)
def test_an_undeclared_import_is_found(tmp_path: Path, text: str, missing: int) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project]\ndependencies = ["torch>=2,<3"]\n'
        '[project.optional-dependencies]\nir = ["ir-measures>=0.4"]\ndev = ["pytest", "hypothesis"]\n'
    )
    source = tmp_path / "fedrag"
    source.mkdir()
    (source / "rag.py").write_text(text)
    assert len(undeclared_imports(source, pyproject)) == missing
