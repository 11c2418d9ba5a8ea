"""Files of many kinds: what was written into them is what is read; what cannot be read is named."""

from __future__ import annotations

import logging
import sys
import zipfile
from pathlib import Path

import pytest

import paper
from fedrag.data import read_documents, stream_documents
from fedrag.errors import ConfigError, DataError, MissingExtraError
from fedrag.types import Document


def one(path: Path) -> Document:
    (document,) = read_documents(path, progress=False)
    return document


def test_a_pdf_knows_its_pages(tmp_path: Path) -> None:
    path = paper.pdf(
        tmp_path / "report.pdf", [["Page one."], [], ["Keys are old.", "Rotate them."]], title="The report"
    )
    whole = one(path)
    assert whole.text == "Page one.\n\nKeys are old.\nRotate them."
    source = f"{tmp_path.name}/report.pdf"
    assert whole.metadata == {"title": "The report", "pages": 3, "source": source}
    passages = read_documents(path, chunk_tokens=3, progress=False)
    assert [(p.id, p.text, p.metadata["page"]) for p in passages] == [
        (f"{source}#0", "Page one.\n\n", 1),
        (f"{source}#1", "Keys are old", 3),
        (f"{source}#2", ".\nRotate them", 3),
        (f"{source}#3", ".", 3),
    ]
    assert all(whole.text[p.metadata["start"] : p.metadata["end"]] == p.text for p in passages)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scan.pdf", "its 2 pages hold no text, they may be scanned pictures"),
        ("locked.pdf", "a password locks this PDF"),
        ("cut.pdf", "cannot be read as PDF"),
        ("text.pdf", "cannot be read as PDF"),
        ("cut.docx", "cannot be read as Word"),
        ("text.docx", "cannot be read as Word"),
        ("zip.docx", "cannot be read as Word"),
        ("bomb.docx", "unpacks to 100,004 bytes, at most 100,000"),
    ],
)
def test_a_bad_file_is_named_and_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    path = tmp_path / name
    match name:
        case "scan.pdf":
            paper.pdf(path, [[], []])
        case "locked.pdf":
            paper.locked(paper.pdf(path, [["a secret"]]), "sesame")
        case "cut.pdf":
            path.write_bytes(paper.pdf(path, [["a"]]).read_bytes()[:60])
        case "cut.docx":
            path.write_bytes(paper.word(path).read_bytes()[:-3000])
        case "zip.docx" | "bomb.docx":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("word/document.xml", "<w/>")
                file.writestr("word/big.xml", bytes(100_000))
            if name == "bomb.docx":
                monkeypatch.setattr("fedrag.data.docx._LARGEST", 100_000)
        case _:
            path.write_text("no such thing")
    with pytest.raises(DataError, match=message) as caught:
        read_documents(path)
    assert name in str(caught.value)
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path)
    (document,) = read_documents(tmp_path, on_error="skip")
    assert document.text == "good"
    assert "left out 1 files that cannot be read" in caplog.text
    assert name in caplog.text
    with pytest.raises(DataError, match="no file that can be read.*" + message):
        read_documents(path, on_error="skip")


def test_a_pdf_that_only_forbids_printing_is_read(tmp_path: Path) -> None:
    assert one(paper.locked(paper.pdf(tmp_path / "a.pdf", [["Read me."]]), "")).text == "Read me."


def test_word_files_in_the_order_of_the_page(tmp_path: Path) -> None:
    document = one(paper.word(tmp_path / "keys.docx", title="Keys  of 2024"))
    assert document.text == (
        "Keys\n\nThe clerk rotates them.\n\nroom | clerk | key\n12, Bruno | 7 steel\n\nAsk in room 12."
    )
    assert document.metadata == {"title": "Keys of 2024", "source": f"{tmp_path.name}/keys.docx"}


PAGE = """<!doctype html><html lang="en"><head><title> Keys &amp; locks </title><meta name="Author" content="Bruno">
<meta name="viewport" content="x"><style>p { color: red }</style></head><body><script>var secret = 1;</script>
<!-- note --><h1>Keys</h1><p>Rotate&nbsp;them   <b>every</b>
month.<br>Or   not.</p><ul><li>one</li><li>two <i>three</i></li></ul>
<table><tr><th>room</th><th>key</th></tr><tr><td>12</td><td>7</td></tr></table>
<pre>a  b
  c</pre><div hidden>unseen</div><template>unseen</template><p>2 &lt; 3 &eacute;</p></body></html>"""


def test_a_page_as_a_reader_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.HTM"
    path.write_text(PAGE)
    document = one(path)
    assert document.text == (
        "Keys\n\nRotate them every month.\nOr not.\n\none\ntwo three\n\nroom | key\n12 | 7\n\na  b\n  c\n\n2 < 3 é"
    )
    assert document.metadata == {
        "title": "Keys & locks",
        "author": "Bruno",
        "language": "en",
        "source": f"{tmp_path.name}/keys.HTM",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_a_page_says_how_it_is_written(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.html"
    path.write_bytes(f'<meta charset="{encoding}"><p>Müller'.encode(encoding))
    assert one(path).text == "Müller"


def test_a_page_as_deep_as_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "deep.html"
    path.write_text("<div>" * 3000 + "deep" + "<pre>" * 1000 + "er")
    assert one(path).text == "deep\n\ner"


FRONT = "---\ntitle: Keys\nyear: 2024\nday: 2024-05-01\ntags: [a, b]\nnothing:\nsource: wiki\n---\nBody.\n"


@pytest.mark.parametrize("text", [FRONT, FRONT.replace("\n", "\r\n"), FRONT.replace("---\nBody", "...\nBody")])
def test_a_front_matter_is_metadata(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.md"
    path.write_bytes(text.encode("utf-8-sig"))
    document = one(path)
    assert document.text.strip() == "Body."
    assert document.metadata == {
        "title": "Keys",
        "year": 2024,
        "day": "2024-05-01",
        "tags": ["a", "b"],
        "given": {"source": "wiki"},
        "source": f"{tmp_path.name}/keys.md",
    }


@pytest.mark.parametrize(
    "text", ["---\nrule\n---\ntext", "---\nno end: here", "--- \n---\ntext", "text\n---\na: b\n---\n"]
)
def test_a_rule_is_no_front_matter(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    assert one(path) == Document(text, f"{tmp_path.name}/keys.txt#0", {"source": f"{tmp_path.name}/keys.txt"})


@pytest.mark.parametrize(
    ("block", "line", "problem"),
    [
        ("a: 1\nb: [", 4, "expected"),
        ("a: 1\na: 2", 3, "'a' stands there twice"),
        ("a: 1\n2: x", 3, "a key is a word"),
        ("a: &x [1]\nb: *x", 2, "anchors, aliases and tags"),
        ("a: 1\nb: !!python/name:os.system x", 3, "anchors, aliases and tags"),
        ("day: 2024-02-31", 2, "day"),
        ("a: " + "[" * 5000, 2, "recursion"),
        ("a: b: c", 2, "mapping values"),
    ],
)
def test_a_wrong_front_matter_is_named(tmp_path: Path, block: str, line: int, problem: str) -> None:
    path = tmp_path / "keys.md"
    path.write_text(f"---\n{block}\n---\ntext")
    with pytest.raises(DataError, match=problem) as caught:
        read_documents(path)
    assert f"{path}, line {line}: the front matter" in str(caught.value)


def test_a_value_that_json_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys.md").write_text("---\nshare: .nan\nmost: .inf\n---\ntext")
    with pytest.raises(DataError, match=r"keys.md, front matter: the column 'most' holds float inf"):
        read_documents(tmp_path)


def test_files_that_say_the_same_are_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    (root / "a.txt").write_text("The key is 7.\n")
    (root / "b.md").write_text("The  key\nis 7.")
    (root / "c.md").write_text("---\nyear: 2020\n---\nThe key is 7.")  # says something else about itself
    (root / "d.html").write_text("<p>The key is 7.</p>")
    assert [d.id for d in read_documents(root)] == ["docs/a.txt#0", "docs/c.md#0"]
    assert "left out 2 files that say the same as another: docs/b.md, docs/d.html" in caplog.text
    assert len(read_documents(root, repeated=True)) == 4


def test_two_hundred_mixed_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    for n in range(190):
        match n % 5:
            case 0:
                paper.pdf(root / f"{n:03}.pdf", [[f"text {n}"]])
            case 1:
                (root / f"{n:03}.html").write_text(f"<p>text {n}")
            case 2:
                (root / f"{n:03}.md").write_text(f"---\nn: {n}\n---\ntext {n}")
            case 3 if n < 60:
                paper.word(root / f"{n:03}.docx", title=str(n))
            case _:
                (root / f"{n:03}.txt").write_text(f"text {n}")
    for n in range(190, 200):
        (root / f"{n}.pdf").write_text("damaged")
    caplog.set_level(logging.WARNING)
    documents = read_documents(root, on_error="skip", progress=False)
    assert [d.id.split("/")[1][:3] for d in documents] == [f"{n:03}" for n in range(190)]
    assert all(d.text.strip() == f"text {n}" for n, d in enumerate(documents) if not d.metadata["source"].endswith("x"))
    assert "left out 10 files that cannot be read" in caplog.text


def test_files_come_one_by_one(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    stream = stream_documents(tmp_path)
    assert next(stream).text == "text 0"
    (tmp_path / "1.txt").write_text("changed")
    assert [document.text for document in stream] == ["changed", "text 2"]


def test_rows_come_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n{"text": "a"}\nno json\n')
    stream = stream_documents(path)
    assert next(stream).text == "a"
    with pytest.raises(DataError, match="line 3"):
        next(stream)


def test_settings_are_checked_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on_error is 'raise' or 'skip', got 'ignore'"):
        stream_documents(tmp_path, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        stream_documents(tmp_path, chunk_tokens=0)
    with pytest.raises(DataError, match="no such file"):
        stream_documents(tmp_path / "gone")


@pytest.mark.parametrize(("suffix", "library"), [("pdf", "pypdf"), ("html", "bs4"), ("docx", "docx")])
def test_a_library_that_is_not_installed_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, suffix: str, library: str
) -> None:
    class Without:
        """An installation that lacks the library, to whatever asks for it."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] == library:
                raise ModuleNotFoundError(name)

    for name in [name for name in sys.modules if name.partition(".")[0] == library or name == f"fedrag.data.{suffix}"]:
        monkeypatch.delitem(sys.modules, name)
    import fedrag.data

    monkeypatch.delattr(fedrag.data, suffix, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Without, *sys.meta_path])
    (tmp_path / f"a.{suffix}").write_text("<p>a")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(MissingExtraError, match=rf"a\.{suffix}: {library} is not installed; .*fedrag\[documents\]"):
        read_documents(tmp_path)
    assert [d.text for d in read_documents(tmp_path, on_error="skip")] == ["b"]
    assert f"{library} is not installed" in caplog.text
