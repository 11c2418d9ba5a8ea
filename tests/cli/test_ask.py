"""`fedrag ask`: one question, a pipe of them, and a person at a terminal."""

import json
import os
import pty
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fedrag import DenseRetriever, Document, RAGSystem
from fedrag.cli import app
from systems import DOCUMENTS, tiny_system

EVEN = json.dumps({"field": "even", "operator": "==", "value": True})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ask") / "rag"
    tiny_system().save(folder)
    return folder


def ask(*words, **settings):
    return CliRunner().invoke(app, ["ask", *map(str, words)], **settings)


def test_json_holds_the_answer_and_its_sources_and_nothing_else_is_printed(saved):
    done = ask(saved, "Which key has clerk 3 ?", "--json", "--where", EVEN, "--k", 2)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    answer = RAGSystem.load(saved).query("Which key has clerk 3 ?", k=2, where=json.loads(EVEN))
    assert told["answer"].strip() == answer.text
    assert [source["id"] for source in told["sources"]] == [hit.document.id for hit in answer.hits]
    assert all(int(source["id"][1:]) % 2 == 0 for source in told["sources"])


def test_a_pipe_is_asked_line_by_line(saved):
    done = ask(saved, "--json", input="Which key has clerk 1 ?\n\nWhich key has clerk 2 ?\n")
    assert [json.loads(line)["question"] for line in done.stdout.splitlines()] == [
        "Which key has clerk 1 ?",
        "Which key has clerk 2 ?",
    ]


def test_a_question_that_cannot_be_asked_does_not_end_the_pipe(saved):
    done = ask(saved, "--json", input="key " * 600 + "\nWhich key has clerk 2 ?\n")
    assert done.exit_code == 1
    assert "fedrag: " in done.stderr
    assert json.loads(done.stdout)["question"] == "Which key has clerk 2 ?"


def test_a_line_that_is_no_text_is_named_and_the_next_one_asked(saved):
    done = ask(saved, "--json", input=b"Key \xff\xfe ?\nWhich key has clerk 2 ?\n")
    assert done.exit_code == 1, done.exception
    assert "not written in UTF-8" in done.stderr
    assert json.loads(done.stdout)["question"] == "Which key has clerk 2 ?"
    alone = ask(saved, b"\xff".decode("utf-8", "surrogateescape"))
    assert "not written in UTF-8" in str(alone.exception)


@pytest.mark.parametrize(("where", "told"), [("{", "no JSON"), ("[1]", "takes an object"), ("[" * 9999, "no JSON")])
def test_a_filter_that_is_none_is_named(saved, where, told):
    done = ask(saved, "q", "--where", where)
    assert told in str(done.exception)


def test_without_a_generator_the_sources_are_the_answer(tmp_path):
    rag = tiny_system()
    RAGSystem(retriever=DenseRetriever(rag.dense.encoder, rag.dense.store), top_k=2).save(tmp_path / "rag")
    assert json.loads(ask(tmp_path / "rag", "Which ?", "--json").stdout)["answer"] is None
    assert len(ask(tmp_path / "rag", "Which ?").stdout.splitlines()) == 2


def test_a_document_cannot_command_the_terminal(tmp_path):
    rag = tiny_system(top_k=1)
    rag.dense.store.remove([document.id for document in DOCUMENTS])
    rag.add([Document("red \x1b[31m and \x07 title \x1b]0;x", id="\x1b[2J")], progress=False)
    rag.save(tmp_path / "rag")
    done = ask(tmp_path / "rag", "Which ?")
    assert done.exit_code == 0
    assert not {"\x1b", "\x07"} & set(done.stdout)


def test_at_a_terminal_it_asks_until_the_end_and_obeys_commands(saved):
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", "from fedrag.cli import main; main()", "ask", str(saved)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    os.write(ours, b"/nothing\n/k 1\nWhich key has clerk 3 ?\n/sources\nWhich key has clerk 3 ?\n/quit\nnever asked\n")
    out, errors = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == 0, errors
    assert "[1]" in out
    assert "[2]" not in out
    assert out.count("[1]") == 1
    assert errors.count("/quit") == 2  # at the beginning, and for the command that is none
