"""docs/methods.md is written from the docstrings and the published figures, and a stale one is noticed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    shutil.copytree(REPOSITORY / "src/fedrag/objectives", tmp_path / "src/fedrag/objectives")
    shutil.copy(REPOSITORY / "src/fedrag/__init__.py", tmp_path / "src/fedrag/__init__.py")
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts/methods_guide.md", tmp_path / "scripts")
    (tmp_path / "docs/evidence").mkdir(parents=True)
    return tmp_path


def write(root, *arguments):
    command = [sys.executable, str(REPOSITORY / "scripts/methods.py"), "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_method_says_what_it_needs_and_when_to_use_it(root):
    assert write(root).returncode == 0
    text = (root / "docs/methods.md").read_text()
    sections = {part.partition("\n")[0]: part for part in text.split("\n### ")[1:]}
    assert {"Contrastive", "LSR", "RALT", "RAGSequence", "RAGToken", "EMDR2", "Joint", "Distillation"} <= set(sections)
    for name in ("Contrastive", "LSR", "RALT", "RAGSequence", "RAGToken", "Distillation"):
        assert all(word in sections[name] for word in ("**Requirements**", "**Trains**", "**Cost**", "**Use it when**"))
    assert "p(y | q) = Σ_d p(d | q)" in sections["RAGSequence"]
    assert "```mermaid" in text
    assert ">>>" not in text


def test_a_changed_docstring_or_figure_makes_the_page_stale(root):
    assert write(root, "--check").returncode == 1
    write(root)
    assert write(root, "--check").returncode == 0
    home = root / "src/fedrag/objectives/ralt.py"
    home.write_text(home.read_text().replace("Train the generator to answer", "Train the model to answer"))
    assert write(root, "--check").returncode == 1
    write(root)
    metric = {"mean": 0.5, "low": 0.4, "high": 0.6}
    row = {"metrics": {"end to end": metric}, "cost": {"cpu_seconds": 90.0, "peak_gib": 0.75}}
    content = {"title": "A world", "baseline": "frozen", "columns": {"end to end": []}}
    regimes = {"frozen": row, "RALT": row}
    (root / "docs/evidence/world.json").write_text(json.dumps({**content, "regimes": regimes}))
    assert "methods.md is not what" in write(root, "--check").stderr
    write(root)
    assert "| RALT | 0.500 (0.40 to 0.60) | 1.50 | 0.75 |" in (root / "docs/methods.md").read_text()


def test_a_public_objective_that_the_page_forgets_is_named(root):
    init = root / "src/fedrag/__init__.py"
    init.write_text(
        init.read_text().replace('"LSR": "objectives.lsr"', '"LSR": "objectives.lsr", "LSR2": "objectives.lsr"')
    )
    done = write(root)
    assert done.returncode == 1
    assert "LSR2" in done.stderr
