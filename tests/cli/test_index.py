"""`fedrag index` and `fedrag reindex`: what changed is embedded, what is gone leaves, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import paper
from fedrag import Document, RAGSystem
from fedrag.cli import app
from fedrag.cli.indexing import Indexing
from fedrag.data.manifest import Manifest
from fedrag.encoders.sentence import SentenceEncoder
from fedrag.errors import DataError, StoreError
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.memory import MemoryStore
from tiny import tiny_sentence_transformer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "encoder"
    tiny_sentence_transformer(kind="static").save(str(folder), create_model_card=False)
    return str(folder)


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """A folder of six kinds of files, settled for long; the working directory is the one above."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "docs"
    root.mkdir()
    paper.pdf(root / "a.pdf", [["Rotate keys."], ["Ask the clerk."]])
    paper.word(root / "b.docx")
    (root / "c.html").write_text("<title>Rooms</title><p>Room 12")
    (root / "d.md").write_text("---\nyear: 2020\n---\nThe clerk is Bruno.")
    (root / "e.txt").write_text("The river is long.")
    (root / "f.txt").write_text("")
    settle(root)
    return root


def settle(root):
    """Let all files look as if they had changed long ago, each at its own time still."""
    for path in root.iterdir():
        changed = path.stat().st_mtime_ns - 10**12
        os.utime(path, ns=(changed, changed))


def run(*words, new=None, code=0):
    """`fedrag index docs rag --json`; return what it printed."""
    models = ["--encoder", new, "--generator", "none"] if new else []
    result = CliRunner().invoke(app, ["index", "docs", "rag", *models, "--json", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def stored():
    return {d.id: d for d in RAGSystem.load("rag").dense.store.documents()}


@pytest.fixture
def parsed(monkeypatch):
    """The names of the files that are parsed, as they are."""
    from fedrag.data import files

    names = []

    def noting(read):
        return lambda path: names.append(path.name) or read(path)

    monkeypatch.setattr(files, "_READERS", {kind: noting(read) for kind, read in files._READERS.items()})
    return names


def test_an_unchanged_folder_costs_no_reading_and_no_saving(docs, encoder, parsed):
    first = run(new=encoder)
    assert first["embedded"] == first["passages"] == 5
    assert first["files"]["read"] == 5
    assert first["files"]["empty"] == ["docs/f.txt"]
    assert sorted(parsed) == ["a.pdf", "b.docx", "c.html", "d.md", "e.txt", "f.txt"]
    assert stored()["docs/a.pdf#0"].metadata["page"] == 1
    where = {"field": "year", "operator": "==", "value": 2020}
    assert [hit.document.id for hit in RAGSystem.load("rag").retrieve("clerk", where=where)] == ["docs/d.md#0"]
    version = Path("rag/CURRENT").read_text()
    parsed.clear()
    second = run()
    assert parsed == []
    assert (second["embedded"], second["unchanged"], second["removed"]) == (0, 5, 0)
    assert second["files"]["unchanged"] == 6
    assert Path("rag/CURRENT").read_text() == version


def test_what_changed_is_read_and_what_is_gone_leaves(docs, encoder, parsed):
    run(new=encoder)
    before = stored()
    (docs / "d.md").write_text("The clerk is Ada.")
    (docs / "g.txt").write_text("New.")
    (docs / "e.txt").unlink()
    parsed.clear()
    done = run()
    assert parsed == ["d.md", "g.txt"]
    assert (done["embedded"], done["removed"], done["passages"]) == (2, 1, 5)
    after = stored()
    assert after["docs/d.md#0"].text == "The clerk is Ada."
    assert before.keys() - after.keys() == {"docs/e.txt#0"}
    (docs / "f.txt").write_text("No more empty.")
    (docs / "g.txt").write_text("")
    done = run()
    assert (done["embedded"], done["removed"], done["passages"]) == (1, 1, 5)


def test_other_settings_and_other_saves_are_not_believed(docs, encoder, parsed):
    run(new=encoder)
    parsed.clear()
    assert run("--chunk-tokens", "2", "--overlap", "0")["embedded"] > 5
    assert len(parsed) == 6
    parsed.clear()
    RAGSystem.load("rag").save("rag")  # as training does; nobody knows what is in there now
    assert run("--chunk-tokens", "2", "--overlap", "0")["embedded"] == 0
    assert len(parsed) == 6


def test_a_file_that_just_changed_is_read_again(docs, encoder, parsed):
    (docs / "e.txt").write_text("The road is long.")  # a second change in this instant would look the same
    run(new=encoder)
    parsed.clear()
    run()
    assert parsed == ["e.txt"]


def test_of_files_that_say_the_same_the_one_that_stays_is_there(docs, encoder):
    (docs / "e2.txt").write_text("The river  is long.")
    settle(docs)
    assert run(new=encoder)["files"]["same"] == ["docs/e2.txt"]
    assert run()["files"]["same"] == ["docs/e2.txt"]
    (docs / "e.txt").unlink()
    done = run()
    assert (done["embedded"], done["removed"]) == (1, 1)
    assert "docs/e2.txt#0" in stored()
    (docs / "b.txt").write_text("The river is long.")
    done = run()
    assert (done["embedded"], done["removed"]) == (1, 1)
    assert run("--repeated")["embedded"] == 1
    assert {"docs/b.txt#0", "docs/e2.txt#0"} <= stored().keys()


def test_a_bad_file_keeps_nobody_from_the_rest(docs, encoder):
    (docs / "e1.pdf").write_text("damaged")
    with pytest.raises(DataError, match=r"e1.pdf: cannot be read as PDF.*; or leave such files out with --skip-unread"):
        run(new=encoder)
    assert not Path("rag").exists()  # nothing was embedded yet
    done = run("--skip-unreadable", new=encoder)
    assert len(done["files"]["unreadable"]) == 1
    assert done["passages"] == 5
    (docs / "a.pdf").write_text("damaged")
    assert len(run("--skip-unreadable")["files"]["unreadable"]) == 2
    assert len(run("--skip-unreadable")["files"]["unreadable"]) == 2
    assert "docs/a.pdf#0" in stored()  # what was known stays until the file is whole, or gone
    (docs / "a.pdf").unlink()
    assert run("--skip-unreadable")["removed"] == 1


def test_what_is_done_when_a_bad_file_comes_is_kept(docs, encoder, monkeypatch):
    rag = RAGSystem(retriever=DenseRetriever(SentenceEncoder(encoder), MemoryStore(), batch_size=1))
    for n in range(40):
        (docs / f"g{n:02}.txt").write_text(f"text {n}")
    (docs / "z.pdf").write_text("damaged")
    settle(docs)
    with pytest.raises(DataError, match=r"z\.pdf"):
        Indexing(rag, Path("rag"), None, 0).go(docs)
    assert 16 <= len(stored()) < 45
    (docs / "z.pdf").unlink()
    done = run("--chunk-tokens", "0")
    assert done["passages"] == 45
    assert done["embedded"] < 45


def test_slow_saving_is_done_rarely(docs, encoder, monkeypatch):
    whole, times = RAGSystem.save, []

    def slowly(self, path):
        time.sleep(0.5)
        times.append(len(self.dense.store))
        whole(self, path)

    monkeypatch.setattr(RAGSystem, "save", slowly)
    monkeypatch.setattr("fedrag.cli.indexing._SAVE_EVERY", 0.0)
    for n in range(300):
        (docs / f"g{n:03}.txt").write_text(f"text {n}")
    rag = RAGSystem(retriever=DenseRetriever(SentenceEncoder(encoder), MemoryStore(), batch_size=1))
    Indexing(rag, Path("rag"), None, 0, _pause=0.0).go(docs)
    assert times[0] == 16
    assert times[-1] == 305
    assert len(times) <= 4  # and not 20: the first took half a second, so the next comes after five


def test_a_folder_of_the_same_name_takes_nothing_away(docs, encoder, tmp_path):
    run(new=encoder)
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "x.txt").write_text("Another.")
    result = CliRunner().invoke(app, ["index", str(other), "rag", "--json"])
    assert json.loads(result.stdout)["removed"] == 0
    assert len(stored()) == 6
    result = CliRunner().invoke(app, ["index", str(docs / "e.txt"), "rag", "--json"])
    assert json.loads(result.stdout)["removed"] == 0
    assert run()["files"]["unchanged"] == 6


def test_an_unchanged_table_is_not_read(docs, encoder):
    table = docs.parent / "t.jsonl"
    table.write_text("".join(json.dumps({"id": n, "text": f"row {n}", "n": n}) + "\n" for n in range(50)))
    os.utime(table, (1, 1))
    words = ["index", "t.jsonl", "rag", "--json"]
    made = CliRunner().invoke(app, [*words, "--encoder", encoder, "--generator", "none"])
    assert json.loads(made.stdout)["embedded"] == 50
    table.write_bytes(b"?" * table.stat().st_size)
    os.utime(table, (1, 1))  # to all who look, the same
    assert json.loads(CliRunner().invoke(app, words).stdout)["embedded"] == 0
    assert CliRunner().invoke(app, [*words, "--chunk-tokens", "9"]).exit_code == 1


def table(folder, name, rows):
    """A table whose file is told from its last state by its size."""
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def indexed(name, encoder, *words):
    models = [] if Path("rag").exists() else ["--encoder", encoder, "--generator", "none"]
    result = CliRunner().invoke(app, ["index", name, "rag", "--json", *models, *words])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("words", [(), ("--chunk-tokens", "0")])
def test_rows_that_a_table_no_longer_has_leave(tmp_path, monkeypatch, encoder, words):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(n), "text": f"row number {n}"} for n in range(20)]
    table(tmp_path, "one.jsonl", rows)
    table(tmp_path, "two.jsonl", rows[3:5])
    indexed("one.jsonl", encoder, *words)
    indexed("two.jsonl", encoder, *words)
    table(tmp_path, "one.jsonl", rows[5:])
    done = indexed("one.jsonl", encoder, *words)
    assert (done["embedded"], done["unchanged"], done["removed"]) == (0, 15, 3)  # the other table has two of the five
    assert {id.partition("#")[0] for id in stored()} == {str(n) for n in range(3, 20)}
    RAGSystem.load("rag").save("rag")  # as training does: what the table gave is known all the same
    table(tmp_path, "one.jsonl", rows[7:])
    assert indexed("one.jsonl", encoder, *words)["removed"] == 2


def test_rows_of_a_stopped_pass_leave_too(tmp_path, monkeypatch, encoder):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(n), "text": f"row number {n}"} for n in range(40)]
    table(tmp_path, "one.jsonl", [*rows, {"id": "bad", "text": ""}])
    rag = RAGSystem(retriever=DenseRetriever(SentenceEncoder(encoder), MemoryStore(), batch_size=1))
    with pytest.raises(DataError, match="empty"):
        Indexing(rag, Path("rag"), None, 0).go(Path("one.jsonl"))
    assert len(stored()) == 32
    table(tmp_path, "one.jsonl", rows[10:])
    done = indexed("one.jsonl", encoder, "--chunk-tokens", "0")
    assert (done["embedded"], done["removed"], done["passages"]) == (8, 10, 30)


def test_the_options_that_a_system_was_made_with_may_be_given_again(docs, encoder):
    run("--top-k", "2", new=encoder)
    (docs / "g.txt").write_text("New.")
    assert run("--top-k", "2", new=encoder)["embedded"] == 1
    assert run("--lora", "16")["embedded"] == 0
    result = CliRunner().invoke(app, ["index", "docs", "rag", "--top-k", "3", "--encoder", "other"])
    assert "rag is a system already, which --encoder and --top-k cannot change" in str(result.exception)
    RAGSystem.load("rag").save("rag")  # it may be another system now
    assert "--encoder" in str(CliRunner().invoke(app, ["index", "docs", "rag", "--encoder", encoder]).exception)


def test_a_folder_that_cannot_take_the_system_is_told_before_the_work(docs, tmp_path):
    (tmp_path / "file").write_text("")
    for target, reason in (("docs", "not empty and was not written by fedrag"), ("file", "is a file")):
        result = CliRunner().invoke(app, ["index", "docs", target, "--encoder", "no model is looked for"])
        assert isinstance(result.exception, StoreError)
        assert reason in str(result.exception)


def test_what_another_process_saves_meanwhile_is_not_overwritten(docs, encoder, monkeypatch):
    run(new=encoder)
    work = Indexing(RAGSystem.load("rag"), Path("rag"), 200, 20)
    (docs / "g.txt").write_text("New.")
    whole = RAGSystem.add

    def meanwhile(self, documents, *, progress=True):
        other = RAGSystem.load("rag")
        whole(other, [Document("Somebody else's.", "theirs")], progress=False)
        other.save("rag")
        whole(self, documents, progress=progress)

    monkeypatch.setattr(RAGSystem, "add", meanwhile)
    with pytest.raises(StoreError, match="saved by another process"):
        work.go(docs)
    assert "theirs" in stored()


def test_a_save_by_others_in_between_is_noticed(docs, encoder):
    run(new=encoder)
    work = Indexing(RAGSystem.load("rag"), Path("rag"), 200, 20)
    RAGSystem.load("rag").save("rag")
    with pytest.raises(StoreError, match="saved by another process"):
        work.go(docs)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "version": "v000001", "folders": 3}'])
def test_a_damaged_manifest_costs_time_alone(docs, encoder, text):
    run(new=encoder)
    Path("rag/sources.json").write_text(text)
    done = run()
    assert (done["files"]["unchanged"], done["files"]["read"], done["embedded"]) == (0, 5, 0)
    assert Manifest.read(Path("rag"), Path("rag/CURRENT").read_text().strip(), "200 20", docs).entries


@pytest.mark.slow
def test_watching(docs, encoder, tmp_path):
    command = ["index", "docs", "rag", "--encoder", encoder, "--generator", "none", "--watch", "--json"]
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from fedrag.cli import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", start, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        seen = ""
        while "watching docs" not in (line := child.stderr.readline()):
            seen += line
            assert child.poll() is None, seen
        (docs / "new.txt").write_text("Something new.")
        (docs / "bad.pdf").write_text("half written")
        (docs / "e.txt").unlink()
        while "1 new or changed" not in (line := child.stderr.readline()):
            assert child.poll() is None
        assert "docs/new.txt#0" in stored()
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 0
    done = json.loads(out)
    assert (done["embedded"], done["removed"], done["passages"]) == (6, 1, 5)
