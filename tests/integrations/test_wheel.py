"""The wheel, built from what the repository tracks: what is in it, and that it shares a namespace with others."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SHARED = "haystack_integrations/"
NAMESPACES = [
    "haystack_integrations",
    "haystack_integrations/common",
    "haystack_integrations/components",
    "haystack_integrations/components/builders",
    "haystack_integrations/components/embedders",
    "haystack_integrations/components/generators",
    "haystack_integrations/components/retrievers",
    "haystack_integrations/document_stores",
]
"""Levels that belong to nobody: an `__init__.py` in one of them would hide what others put there."""


def built(source: Path, to: Path) -> Path:
    """Build the wheel of a project, without the network."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(to), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = to.glob("*.whl")
    return wheel


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / "source" / name)
    return built(folder / "source", folder / "wheels")


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.relative_to(REPOSITORY / "src").as_posix() for path in (REPOSITORY / "src").rglob("*.py")}
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    modules &= {name.removeprefix("src/") for name in tracked.stdout.splitlines()}
    assert {name for name in names if name.endswith(".py")} == modules  # the tests among what it does not hold
    assert "fedrag/py.typed" in names
    assert any(name.startswith("fedrag/quickstart/base/") for name in names)
    assert {name.split("/")[0] for name in names} - {"fedrag", "haystack_integrations"} == {
        name.split("/")[0] for name in names if ".dist-info/" in name
    }
    assert all(f"{level}/__init__.py" not in names for level in NAMESPACES)
    levels = {str(Path(name).parent) for name in names if name.startswith(SHARED)}
    above = {str(parent) for level in levels for parent in Path(level).parents} - {"."}
    assert sorted(above) == NAMESPACES  # all that have others below them


IMPORTS = """
import sys
from importlib.metadata import files
import haystack_integrations.components.retrievers.other as other
from haystack_integrations.components.retrievers.fedrag import FedRAGRetriever
from haystack_integrations.document_stores.fedrag import FedRAGDocumentStore
import fedrag
assert other.NAME == "other"
print(fedrag.__file__, sys.modules[FedRAGRetriever.__module__].__file__, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_other_integrations_of_haystack_live_beside_it(wheel: Path, tmp_path: Path, together: bool) -> None:
    source = written(
        tmp_path / "source",
        {
            "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "other-haystack"\nversion = "1"\n[tool.setuptools.packages.find]\nwhere = ["src"]\n',
            "src/haystack_integrations/components/retrievers/other/__init__.py": 'NAME = "other"\n',
        },
    )
    others = built(source, tmp_path / "wheels")
    folders = [tmp_path / "site"] * 2 if together else [tmp_path / "ours", tmp_path / "others"]
    for path, folder in zip([wheel, others], folders, strict=True):
        zipfile.ZipFile(path).extractall(folder)
    code = f"import sys; sys.path[:0] = {[str(each) for each in folders]!r}\n{IMPORTS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [Path(line).is_relative_to(folders[0]) for line in done.stdout.split()] == [True, True]


def test_an_init_in_the_namespace_would_hide_the_others(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", {"shared/__init__.py": "", "shared/fedrag/__init__.py": ""})
    others = written(tmp_path / "others", {"shared/other/__init__.py": ""})
    code = f"import sys; sys.path[:0] = {[str(ours), str(others)]!r}\nimport shared.fedrag, shared.other"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "No module named 'shared.other'" in done.stderr
