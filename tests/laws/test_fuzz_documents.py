"""Whatever bytes people have: a right result or an error that names the file, never another exception.

Two ways: files that are known to the letter, from which it is known what must be read; and files that are damaged,
cut or nonsense, from which nothing is known save that the reader says so in words.
"""

from __future__ import annotations

import html
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import paper
from fedrag.data import read_documents, read_examples
from fedrag.errors import DataError

CASES = 850  # of each of the six tests: 5,100 in all
often = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
WORDS = st.lists(st.text(string.ascii_letters + string.digits, min_size=1, max_size=8), min_size=1, max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def sound(path: Path, data: bytes, *, examples: bool = False) -> Any:
    """What is read; `None` where an error names the file."""
    path.write_bytes(data)
    try:
        return (read_examples if examples else read_documents)(path, progress=False)
    except DataError as error:
        assert str(path) in str(error), error  # noqa: PT017
        return None


# fmt: off
PIECES = st.sampled_from([
    "<p>", "</p>", "<div", ">", "<!--", "-->", "<![CDATA[", "]]>", "<!", "<?xml", "&#x110000;", "&#xD800;", "&amp",
    "\x00", "<pre>", "<table><tr><td>", "</td><td>", "<br/>", "<script>", "</script>", "<title>",
    "<meta name=date content=1>", "<html lang=en>", "<meta charset=\"utf-16\">", "<p hidden>", "---\n", "a: b\n",
    "? [x]\n", "- *x\n", "&x ", "!!int 'x'", "...\n", "'", "\"", "{", "[", "2024-02-31", "<<: 1\n", "0b_\n",
    "%YAML 9.9\n", "\t", "\ufeff", "\x85", "\xe9", "1:2:3",
])
# fmt: on


@pytest.mark.slow
@often
@given(st.lists(PIECES | TEXT, max_size=12), st.sampled_from(["html", "md", "txt"]))
def test_pages_and_front_matters_of_any_pieces(folder: Path, pieces: list[str], kind: str) -> None:
    text = "".join(pieces)
    for data in (text.encode(), f"---\n{text}\n---\nbody".encode()):
        for document in sound(folder / f"f.{kind}", data) or []:
            assert document.text.strip()
            assert json.loads(json.dumps(document.metadata, allow_nan=False)) == document.metadata
            document.text.encode()


@pytest.mark.slow
@often
@given(
    st.lists(WORDS, min_size=1, max_size=6), WORDS, st.sampled_from(["p", "div", "li", "td", "h2", "blockquote", "pre"])
)
def test_a_page_says_what_was_written(folder: Path, blocks: list[list[str]], title: list[str], tag: str) -> None:
    body = "".join(f"<{tag}>{' '.join(block)}</{tag}>" for block in blocks)
    page = f"<head><title>{html.escape(' '.join(title))}</title></head><style>x</style><body><tr>{body}<!--no-->"
    (document,) = sound(folder / "w.html", page.encode())
    assert document.metadata["title"] == " ".join(title)
    assert document.text.replace("|", " ").split() == [word for block in blocks for word in block]
    assert len(document.text.replace("|", "\n").split("\n\n" if tag not in ("div", "li", "td") else "\n")) == len(
        blocks
    )


KEYS = st.text(string.ascii_letters, min_size=1, max_size=6).filter(
    lambda key: key.lower() not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "source")
)
VALUES = st.recursive(
    st.booleans() | st.integers(-(10**15), 10**15) | TEXT, lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


@pytest.mark.slow
@often
@given(st.dictionaries(KEYS, VALUES, max_size=4), WORDS)
def test_a_front_matter_says_what_was_written(folder: Path, values: dict[str, Any], words: list[str]) -> None:
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    raw = "\\x85" not in repr(values)  # which PyYAML writes as it is and reads as the end of a line
    block = yaml.dump(values, Dumper=Plain, allow_unicode=raw) if values else ""
    (document,) = sound(folder / "f.md", f"---\n{block}---\n{' '.join(words)}".encode())
    found = {**document.metadata.get("given", {}), **document.metadata}
    found.pop("given", None)
    found.pop("source")
    if values:
        assert found == values
        assert document.text == " ".join(words)


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, bytes]:
    """A sound file of each packed kind."""
    report = paper.pdf(folder / "report.pdf", [["Rotate keys."], ["Ask the clerk."]], title="Keys")
    return {"pdf": report.read_bytes(), "docx": paper.word(folder / "keys.docx").read_bytes()}


@pytest.mark.slow
@often
@given(
    st.sampled_from(["pdf", "docx"]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4),
    st.floats(0.3, 1),
    st.booleans(),
)
def test_damaged_files(
    folder: Path, whole: dict[str, bytes], kind: str, changes: list[tuple[float, bytes]], kept: float, cut: bool
) -> None:
    data = bytearray(whole[kind])
    for place, new in changes:
        at = int(place * (len(data) - len(new)))
        data[at : at + len(new)] = new
    for document in sound(folder / f"d.{kind}", bytes(data[: int(kept * len(data))] if cut else data)) or []:
        document.text.encode()
        assert document.text.strip()


@pytest.mark.slow
@often
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["text", "id", "metadata", "x", "question", "answers", "answer"]), JSON),
        max_size=4,
    ),
    st.sampled_from(["jsonl", "json", "csv"]),
    st.binary(max_size=6),
    st.floats(0, 1),
)
def test_rows_and_examples(folder: Path, rows: list[dict[str, Any]], kind: str, noise: bytes, place: float) -> None:
    match kind:
        case "jsonl":
            data = "\n".join(map(json.dumps, rows)).encode()
        case "json":
            data = json.dumps(rows).encode()
        case _:
            cells = [[json.dumps(row.get(name)) for name in ("text", "answers", "id")] for row in rows]
            data = "\n".join(["text,answers,id", *(",".join(line) for line in cells)]).encode()
    at = int(place * len(data))
    for bytes_ in (data, data[:at] + noise + data[at:]):
        documents = sound(folder / f"r.{kind}", bytes_) or []
        assert len({document.id for document in documents}) == len(documents)
        for example in sound(folder / f"r.{kind}", bytes_, examples=True) or []:
            assert example.question.strip()


EXAMPLE = st.fixed_dictionaries(
    {"question": TEXT.filter(str.strip), "answers": st.lists(TEXT.filter(str.strip), max_size=3)},
    optional={"positives": st.lists(TEXT.filter(str.strip), max_size=2), "year": st.integers(), "note": TEXT},
)


@pytest.mark.slow
@often
@given(st.lists(EXAMPLE, min_size=1, max_size=4))
def test_examples_say_what_was_written(folder: Path, rows: list[dict[str, Any]]) -> None:
    found = sound(folder / "e.jsonl", "\n".join(json.dumps(row) for row in rows).encode(), examples=True)
    assert [(e.question, list(e.answers), list(e.positives), dict(e.metadata)) for e in found] == [
        (
            row["question"],
            row["answers"],
            row.get("positives", []),
            {name: row[name] for name in ("year", "note") if name in row},
        )
        for row in rows
    ]
