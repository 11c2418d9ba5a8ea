"""Write docs/capabilities.md: what works with which library, by running the tests that show it.

A test says what it shows by `@pytest.mark.capability(library, capability, ...)`. A cell is filled only if every test of
that mark ran and passed just now. What is in no cell is a no, for a reason that is said here, in NO.

    python scripts/capabilities.py [--check]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = Path("docs/capabilities.md")
LIBRARIES = {
    "LlamaIndex": "llama-index-core",
    "LangChain": "langchain-core",
    "Haystack": "haystack-ai",
    "Qdrant": "qdrant-client",
    "pgvector": "pgvector",
    "MCP": "mcp",
    "OpenAI": "openai",
    "OpenAI API": "openai",
}
"""By the name that tests use: the package whose version is told."""
HEADINGS = {"pgvector": "PostgreSQL", "MCP": "`MCPRetriever`", "OpenAI": "`RemoteLM`", "OpenAI API": "`fedrag serve`"}
TESTS = ("integrations", "serving")
CAPABILITIES = ("take, tune", "sync", "async", "stream", "batch", "filter", "trace", "save and load")
NO = {
    ("LlamaIndex", "batch"): "LlamaIndex has no batch of queries",
    ("Haystack", "batch"): "Haystack's retrievers take one query",
    ("Qdrant", "trace"): "Qdrant's client traces nothing",
    ("pgvector", "trace"): "psycopg traces nothing",
    ("MCP", "stream"): "a tool's answer comes whole",
    ("MCP", "trace"): "nothing of a question is reported",
    ("MCP", "save and load"): "it may hold tokens: made anew where it is needed",
    ("OpenAI", "filter"): "a model filters nothing",
    ("OpenAI", "trace"): "nothing of a question is reported",
    ("OpenAI API", "take, tune"): "it serves a tuned system",
    ("OpenAI API", "batch"): "the protocol has one question a request",
    ("OpenAI API", "trace"): "nothing of a question is reported",
    ("OpenAI API", "save and load"): "it serves what `rag.save` wrote",
}


class Recorder:
    """A plugin of pytest: which test shows what, and whether all of it passed."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Note the outcome of the test itself, or of a set-up that failed."""
        report = yield
        for mark in item.iter_markers("capability"):
            library, *capabilities = mark.args
            for capability in capabilities:
                if report.when == "call" or not report.passed:
                    name = item.nodeid.split("[")[0]
                    before = self.passed[library, capability].get(name, True)
                    self.passed[library, capability][name] = before and report.passed
        return report


def page(passed: dict[tuple[str, str], dict[str, bool]]) -> str:
    """The page, from what was recorded."""
    lines = [
        "# What works with which library",
        "",
        "Written by `scripts/capabilities.py`, which ran the tests: a cell leads to those that show it, and all of",
        "them passed. [How it is used](ecosystem.md).",
        "",
        f"| | {' | '.join(HEADINGS.get(library, library) for library in LIBRARIES)} |",
        f"|---|{'---|' * len(LIBRARIES)}",
        "| version tested | " + " | ".join(version(package) for package in LIBRARIES.values()) + " |",
    ]
    for capability in CAPABILITIES:
        cells: list[str] = []
        for library in LIBRARIES:
            tests = passed.get((library, capability), {})
            shown = ", ".join(f"[yes](../{name.split('::')[0]})" for name in tests)
            cells.append(shown if tests and all(tests.values()) else f"no: {NO[library, capability]}")
        lines.append(f"| {capability} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the tests and write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page says something else")
    check = parser.parse_args().check
    recorder, output = Recorder(), io.StringIO()
    folders = [str(REPOSITORY / "tests" / name) for name in TESTS]
    words = [*folders, "--rootdir", str(REPOSITORY), "-m", "capability", "-q"]
    with contextlib.redirect_stdout(output):
        status = pytest.main(words, plugins=[recorder])
    wanted = {(library, one) for library in LIBRARIES for one in CAPABILITIES} - NO.keys()
    lacking = sorted(wanted - {key for key, tests in recorder.passed.items() if all(tests.values())})
    if status or lacking or recorder.passed.keys() - wanted:
        print(output.getvalue()[-4000:], file=sys.stderr)
        print(f"not shown: {lacking}; not known: {sorted(recorder.passed.keys() - wanted)}", file=sys.stderr)
        return 1
    text = page(recorder.passed)
    if check:
        same = (REPOSITORY / PAGE).read_text(encoding="utf-8") == text
        print(f"{PAGE}: {'as the tests show' if same else 'differs; write it anew: python scripts/capabilities.py'}")
        return not same
    (REPOSITORY / PAGE).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
