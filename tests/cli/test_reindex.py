"""`fedrag reindex`: another encoder for the same documents, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from fedrag import (
    CrossEncoderReranker,
    DenseRetriever,
    Document,
    HybridRetriever,
    LexicalRetriever,
    MemoryStore,
    RAGSystem,
    Reranked,
    SentenceEncoder,
)
from fedrag.cli import app
from judges import tiny_cross_encoder
from tiny import tiny_sentence_transformer


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A system of 600 passages, `rag`, and another encoder, `other`."""
    monkeypatch.chdir(tmp_path)
    encoder = SentenceEncoder(tiny_sentence_transformer(kind="static"))
    rag = RAGSystem(retriever=DenseRetriever(encoder, MemoryStore()), top_k=3)
    rag.add([Document(f"the clerk of room {n}", f"d{n}", {"n": n}) for n in range(600)], progress=False)
    rag.save("rag")
    other = tiny_sentence_transformer(kind="static")
    with torch.no_grad():
        for weight in other.parameters():
            weight.neg_().add_(0.25)
    other.save("other", create_model_card=False)
    return tmp_path


def test_another_encoder_for_the_same_documents(place):
    before = RAGSystem.load("rag")
    result = CliRunner().invoke(app, ["reindex", "rag", "--encoder", "other", "--save-to", "new", "--json"])
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)
    assert (done["passages"], done["embedded"]) == (600, 600)
    after = RAGSystem.load("new")
    assert list(after.dense.store.documents()) == list(before.dense.store.documents())
    ids = ["d0", "d599"]
    wanted = SentenceEncoder("other").encode_documents([d.text for d in after.dense.store.get(ids)])
    assert torch.allclose(after.dense.store.vectors(ids), wanted.detach())
    assert not torch.allclose(before.dense.store.vectors(ids), wanted.detach())
    assert (after.top_k, after.prompt) == (before.top_k, before.prompt)
    assert after.retrieve("the clerk of room 7")
    again = CliRunner().invoke(app, ["reindex", "new"])
    assert again.stdout == "600 passages in new, all of them fresh\n"
    assert RAGSystem.load("rag").dense.store.fingerprint == before.dense.store.fingerprint


def test_words_and_reranker_stay_with_another_encoder(place):
    rag = RAGSystem.load("rag")
    hybrid = HybridRetriever([rag.dense, LexicalRetriever(rag.dense.store)], depth=7)
    whole = Reranked(hybrid, CrossEncoderReranker(tiny_cross_encoder()), depth=9)
    RAGSystem(retriever=whole, top_k=3, temperature=0.3).save("whole")
    result = CliRunner().invoke(app, ["reindex", "whole", "--encoder", "other"])
    assert result.exit_code == 0, result.output
    after = RAGSystem.load("whole")
    assert (after.retriever.depth, after.retriever.retriever.depth, after.temperature) == (9, 7, 0.3)
    assert after.reranker.fingerprint == whole.reranker.fingerprint
    assert after.dense.encoder.fingerprint == SentenceEncoder("other").fingerprint == after.dense.store.fingerprint
    assert len(after.retrieve("the clerk of room 7")) == 3


def test_what_the_retriever_is_made_of_stays(place):
    rag = RAGSystem.load("rag")
    hybrid = HybridRetriever([rag.dense, LexicalRetriever(rag.dense.store)], depth=7)
    RAGSystem(retriever=hybrid, top_k=3, temperature=0.3).save("hybrid")
    result = CliRunner().invoke(app, ["reindex", "hybrid", "--encoder", "other"])
    assert result.exit_code == 0, result.output
    after = RAGSystem.load("hybrid")
    assert isinstance(after.retriever, HybridRetriever)
    assert (after.retriever.depth, after.temperature) == (7, 0.3)
    assert after.dense.encoder.fingerprint == SentenceEncoder("other").fingerprint
    assert after.retrieve("the clerk of room 7")


SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and their children
from fedrag.retrievers.dense import DenseRetriever
DenseRetriever.__init__.__kwdefaults__["batch_size"] = 2
from fedrag.encoders.sentence import SentenceEncoder
whole = SentenceEncoder.encode_documents
def slowly(self, texts):
    print("batch", flush=True)
    time.sleep(0.02)
    return whole(self, texts)
SentenceEncoder.encode_documents = slowly
from fedrag.cli import main
main()
"""


@pytest.mark.slow
def test_stopped_and_gone_on_with(place):
    command = [sys.executable, "-c", SLOW, "reindex", "rag", "--encoder", "other", "--json"]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for _ in range(40):  # two windows of sixteen batches of two are put
        assert child.stdout.readline() == "batch\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "the same command goes on" in errors
    assert RAGSystem.load("rag").retrieve("the clerk of room 7")  # as it was
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["passages"] == 600
    assert numbers["embedded"] <= 600 - 64
