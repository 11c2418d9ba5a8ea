"""The house holds: a file imports only from floors below its own, and stays small enough to be read whole.

A floor is a list of rooms. Files of one room may import each other, never in a circle; rooms of one floor do not
know each other. Every import counts, inside functions and under TYPE_CHECKING too, except the lazy names of the
package root.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src" / "fedrag"

FLOORS: dict[int, list[set[str]]] = {
    0: [{"errors", "types", "filters", "durable", "optional", "progress"}],
    1: [{"ops"}],
    2: [{"encoders"}, {"generators"}, {"stores"}],
    3: [{"retrievers"}, {"prompts"}],
    4: [{"rag", "reading", "bundles"}, {"data"}],
    5: [{"objectives"}, {"evaluation"}],
    6: [{"training"}],
    7: [{"ablations"}, {"federated"}, {"synthesis"}],
    8: [{"integrations"}, {"pages"}],
    9: [{"serving"}],
    10: [{"quickstart", "cli", "__main__", "__init__"}],
}
ROOM = {part: (floor, room) for floor, rooms in FLOORS.items() for room, parts in enumerate(rooms) for part in parts}
UPWARD = {("training.trainer", "federated")}
"""The one switch: a trainer knows how to be federated. It loads the room above when it is asked to, and not before."""
LINES_PER_FILE = 280
CODE_OF_CORE = 5_600  # lines of the core that are neither blank nor comment nor docstring: explaining is free
BESIDE_THE_CORE = {"evaluation", "data", "bundles"}  # what comes in and goes out, and no part of what trains
CODE_OF_ALL = 17_500  # without the floor of other people's libraries, each of which has a budget of its own
CODE_OF_A_LIBRARY = 800  # langchain.py, langchain_index.py, ...: what joins one library, or serves
OUTSIDE = {"integrations", "serving"}
VAGUE = {"util", "utils", "helper", "helpers", "base", "manager", "managers"}


def module_files(source: Path) -> dict[str, Path]:
    """Dotted names below the package, `stores.memory` or `stores.__init__`, and their files."""
    return {".".join(path.relative_to(source).with_suffix("").parts): path for path in sorted(source.rglob("*.py"))}


def imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name below the package) of each import from the own package; `.` marks a relative one."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "."
                continue
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            names = [str(node.args[0].value)] if called in ("import_module", "__import__") else []
        for name in names:
            if name == package or name.startswith(package + "."):
                yield node.lineno, name[len(package) + 1 :]


def resolve(name: str, files: dict[str, Path]) -> str | None:
    """The file that an imported name lives in; `None` for the version, which the root holds and anyone may read."""
    if name == "__version__":
        return None
    parts = name.split(".")
    while parts and parts != [""]:
        for candidate in (".".join(parts), ".".join([*parts, "__init__"])):
            if candidate in files:
                return candidate
        parts.pop()
    return "__init__" if "." not in name else name


def floor_violations(source: Path) -> list[str]:
    files = module_files(source)
    graph: dict[str, set[str]] = {name: set() for name in files}
    found: list[str] = []
    for name, path in files.items():
        if name == "__init__":
            continue
        part = name.split(".")[0]
        if part not in ROOM:
            found.append(f"{name}: {part!r} has no floor; give it one in FLOORS")
            continue
        for line, imported in imports(ast.parse(path.read_text(encoding="utf-8")), source.name):
            where = f"{path.relative_to(source)}:{line}"
            if imported == ".":
                found.append(f"{where}: relative import; write the whole name")
                continue
            target = resolve(imported, files)
            if target is None:
                continue
            other = target.split(".")[0]
            if (name, other) in UPWARD:
                continue
            graph[name].add(target)
            if other in ROOM and ROOM[other] != ROOM[part] and ROOM[other][0] >= ROOM[part][0]:
                found.append(f"{where}: {part} (floor {ROOM[part][0]}) imports {other} (floor {ROOM[other][0]})")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"import cycle: {' -> '.join(error.args[1])}")
    return found


def size_violations(source: Path) -> list[str]:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in module_files(source).items()}
    found = [
        f"{name}: {count} lines, at most {LINES_PER_FILE}" for name, count in lines.items() if count > LINES_PER_FILE
    ]
    core = [
        path
        for name, path in module_files(source).items()
        if ROOM.get((part := name.split(".")[0]), (10, 0))[0] <= 6 and part not in BESIDE_THE_CORE
    ]
    own = [path for name, path in module_files(source).items() if (name.split(".")[0]) not in OUTSIDE]
    budgets = [("floors 0 to 6", core, CODE_OF_CORE), ("the package", own, CODE_OF_ALL)]
    budgets += [(what, paths, CODE_OF_A_LIBRARY) for what, paths in libraries(source).items()]
    for what, paths, most in budgets:
        if (code := sum(code_lines(path.read_text(encoding="utf-8")) for path in paths)) >= most:
            found.append(f"{what}: {code} lines of code, fewer than {most} wanted")
    return found


def libraries(source: Path) -> dict[str, list[Path]]:
    """The files of each outside library, by the first word of their names; serving is one of them."""
    found: dict[str, list[Path]] = {}
    for name, path in module_files(source).items():
        room, _, file = name.partition(".")
        if room in OUTSIDE:
            found.setdefault(room if room == "serving" else file.split("_")[0], []).append(path)
    return found


def code_lines(text: str) -> int:
    explained: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            explained |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and n not in explained for n, line in lines)


def name_violations(source: Path) -> list[str]:
    return [f"{name}: a vague name" for name in module_files(source) if VAGUE & set(name.split("."))]


def mock_violations(tests: Path) -> list[str]:
    found: list[str] = []
    for path in sorted(tests.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {part for alias in node.names for part in alias.name.split(".")}
            elif isinstance(node, ast.ImportFrom):
                names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            elif isinstance(node, (ast.arg, ast.Attribute, ast.Name)):
                names = {getattr(node, "arg", None) or getattr(node, "attr", None) or getattr(node, "id", "")}
            else:
                continue
            if used := names & {"mock", "pytest_mock", "mocker", "Mock", "MagicMock", "AsyncMock", "create_autospec"}:
                found.append(f"{path.relative_to(tests)}:{getattr(node, 'lineno', 0)}: {used.pop()}; use a real part")
    return found


def test_imports_go_down() -> None:
    found = floor_violations(SOURCE)
    assert not found, "\n".join(found)


def test_files_fit_their_budget() -> None:
    found = size_violations(SOURCE)
    assert not found, "\n".join(found)


def test_no_vague_names() -> None:
    found = name_violations(SOURCE)
    assert not found, "\n".join(found)


def test_no_mocks() -> None:
    found = mock_violations(REPOSITORY / "tests")
    assert not found, "\n".join(found)


GOOD = {
    "__init__.py": "if TYPE_CHECKING:\n    from fedrag.rag import RAGSystem\n",
    "errors.py": "",
    "types.py": "from fedrag.errors import InputError\n",
    "ops/__init__.py": "",
    "ops/chunked.py": "from fedrag.ops.likelihood import supervised\n",
    "ops/likelihood.py": "import torch\n",
    "stores/__init__.py": "",
    "stores/memory.py": "from fedrag import types, __version__\nfrom fedrag.ops import likelihood\n",
    "rag.py": "import fedrag.stores.memory\n",
    "evaluation/__init__.py": "",
    "objectives/__init__.py": "",
    "cli.py": "from fedrag import RAGSystem\n",
}


def write(root: Path, files: dict[str, str]) -> Path:
    source = root / "fedrag"
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    return source


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    assert floor_violations(source) + size_violations(source) + name_violations(source) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("ops/up.py", "from fedrag.rag import RAGSystem\n", "ops (floor 1) imports rag (floor 4)"),
        ("ops/hidden.py", "def f():\n    import fedrag.rag\n", "ops (floor 1) imports rag (floor 4)"),
        ("ops/typed.py", "if TYPE_CHECKING:\n    from fedrag.rag import RAGSystem\n", "imports rag (floor 4)"),
        ("ops/late.py", "import_module('fedrag.rag')\n", "imports rag (floor 4)"),
        ("ops/root.py", "from fedrag import RAGSystem\n", "imports __init__ (floor 10)"),
        (
            "objectives/lsr.py",
            "from fedrag.evaluation import evaluate\n",
            "objectives (floor 5) imports evaluation (floor 5)",
        ),
        ("data.py", "from fedrag.rag import RAGSystem\n", "data (floor 4) imports rag (floor 4)"),
        ("ops/likelihood.py", "from fedrag.ops import chunked\n", "import cycle: "),
        ("stores/near.py", "from .memory import MemoryStore\n", "near.py:1: relative import"),
        ("attic.py", "", "'attic' has no floor"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    found = floor_violations(write(tmp_path, GOOD | {name: text}))
    assert len(found) == 1
    assert complaint in found[0]


def test_a_file_too_long_is_found(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD | {"rag.py": "\n" * LINES_PER_FILE})
    assert size_violations(source) == []
    assert size_violations(write(tmp_path, {"rag.py": "\n" * (LINES_PER_FILE + 1)})) == ["rag: 281 lines, at most 280"]


def test_a_core_too_large_is_found(tmp_path: Path) -> None:
    files = {f"ops/part{number}.py": "x = 1\n" * 250 for number in range(23)}
    found = size_violations(write(tmp_path / "a", GOOD | files))
    assert len(found) == 1
    assert found[0].startswith("floors 0 to 6: 57")
    explained = {f"ops/part{number}.py": '"""What\nand why."""\n# how\n\n' * 60 for number in range(20)}
    assert size_violations(write(tmp_path / "c", GOOD | explained)) == []
    files = {f"quickstart/part{number}.py": "x = 1\n" * 250 for number in range(23)}
    assert size_violations(write(tmp_path / "b", GOOD | files)) == []


def test_a_library_too_large_is_found(tmp_path: Path) -> None:
    many = {f"integrations/{name}.py": "x = 1\n" * 270 for name in ("eel", "eel_store", "elk", "elk_model")}
    assert size_violations(write(tmp_path, GOOD | many)) == []
    assert size_violations(write(tmp_path, {"integrations/elk_store.py": "x = 1\n" * 280})) == [
        "elk: 820 lines of code, fewer than 800 wanted"
    ]


@pytest.mark.parametrize("name", ["utils.py", "stores/base.py", "helpers/__init__.py"])
def test_a_vague_name_is_found(tmp_path: Path, name: str) -> None:
    assert len(name_violations(write(tmp_path, GOOD | {name: ""}))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from unittest import mock\n",
        "import unittest.mock as m\n",
        "from unittest.mock import patch\n",
        "def test_it(mocker): ...\n",
        "x = lib.MagicMock()\n",
    ],
)
def test_a_mock_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "test_it.py").write_text(text)
    assert len(mock_violations(tmp_path)) == 1
