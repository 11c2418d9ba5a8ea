"""The public names: they resolve, they are documented, and type checkers see the same ones as the interpreter."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import fedrag

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PUBLIC = {
    "records": ["Answer", "Document", "Example", "Hit", "Media"],
    "parts": [
        "LexicalRetriever",
        "CausalLM",
        "CrossEncoderReranker",
        "DenseRetriever",
        "HybridRetriever",
        "MemoryStore",
        "Prompt",
        "RAGSystem",
        "Reranked",
        "SentenceEncoder",
    ],
    "data": ["documents_from", "examples_from", "read_documents", "read_examples", "split"],
    "retriever objectives": ["Contrastive", "Distillation", "HardNegatives", "LSR", "SentenceLoss", "mine"],
    "reranker objectives": ["Ranking"],
    "generator objectives": ["Mixture", "RALT", "Raft", "sft_rows"],
    "joint objectives": ["EMDR2", "Joint", "RAGSequence", "RAGToken"],
    "training": ["RAGTrainer"],
    "evaluation": ["Ablation", "Report", "ablation", "evaluate"],
    "errors": ["FedRAGError"],
}


def code_of_pages() -> str:
    """What stands in fences and backticks: `split` the name, not split the verb."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", pages, re.DOTALL))


def test_all_is_the_public_names() -> None:
    assert sorted(fedrag.__all__) == sorted(name for names in PUBLIC.values() for name in names)


@pytest.mark.parametrize("name", fedrag.__all__)
def test_a_name_resolves_and_says_what_it_is(name: str) -> None:
    value = getattr(fedrag, name)
    assert value is getattr(import_module(f"fedrag.{fedrag._HOME[name]}"), name)
    # a dataclass without one gets its signature as a docstring, which says nothing
    documented = inspect.getdoc(value) or ""
    assert documented
    assert not documented.startswith(f"{name}(")


@pytest.mark.parametrize("name", fedrag.__all__)
def test_a_name_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", code_of_pages()), f"{name} is exported, yet README.md and docs/ do not name it"


def test_the_pages_import_only_public_names() -> None:
    imported = {
        name.strip()
        for line in re.findall(r"^\s*from fedrag import \(?([^()\n]*)", code_of_pages(), re.MULTILINE)
        for name in line.partition("#")[0].split(",")
        if name.strip()
    }
    assert imported
    assert imported <= set(fedrag.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(fedrag.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module
        seen |= {alias.name: node.module.removeprefix("fedrag.") for alias in node.names}
    assert seen == fedrag._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RAGSytem'"):
        _ = fedrag.RAGSytem


def test_dir_lists_the_public_names() -> None:
    assert set(fedrag.__all__) <= set(dir(fedrag))
