"""`fedrag doctor`: what is there, what is missing, and what is wrong with a saved system."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from fedrag.cli import app
from fedrag.cli.doctor import Finding, _libraries
from fedrag.durable import current
from systems import tiny_system

SECRET = "hf_" + "q9Z8" * 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "rag"
    tiny_system(lora=2).save(folder)
    return folder


@pytest.fixture
def saved(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "rag")


def doctor(*words):
    done = CliRunner().invoke(app, ["doctor", *map(str, words), "--json"], env={"HF_TOKEN": SECRET})
    assert SECRET not in done.output
    return done.exit_code, {f["name"]: f for f in json.loads(done.stdout)["findings"]}


def test_a_whole_system_has_no_problem(saved):
    code, found = doctor(saved)
    assert code == 0, [f for f in found.values() if f["state"] == "problem"]
    assert found["torch"]["told"] == torch.__version__
    assert found["store"]["told"].startswith("24 documents")
    assert {"models", "vectors", "retrieval", "memory", "disk", "hub", "encoder/", "store/"} <= found.keys()
    assert "a token is set" in found["hub"]["told"]
    told = CliRunner().invoke(app, ["doctor", str(saved)])
    assert told.exit_code == 0
    assert "every byte as it was written" in told.stdout


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def stale(system):
    rag = tiny_system(lora=2)
    with torch.no_grad():
        next(rag.dense.encoder.parameters()).add_(1.0)
    rag.dense.encoder.save(current(system) / "encoder")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda system: flip(next(system.rglob("vectors.bin"))), "vectors.bin"),
        (lambda system: next(system.rglob("adapter_model.safetensors")).write_bytes(b"cut"), "header"),
        (lambda system: (current(system) / "fedrag.json").write_text("{"), ""),
        (lambda system: shutil.rmtree(current(system) / "encoder"), ""),
        (stale, "encoder"),
        (shutil.rmtree, "nothing saved"),
    ],
    ids=["a bit of a vector", "weights cut short", "settings", "no encoder", "vectors of another encoder", "nothing"],
)
def test_each_harm_to_a_system_is_a_problem(saved, harm, told):
    harm(saved)
    code, found = doctor(saved)
    assert code == 1
    assert found["system"]["state"] == "problem"
    assert told in found["system"]["told"]


def test_a_store_that_is_elsewhere_is_no_problem(saved):
    file = current(saved) / "fedrag.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"elsewhere": {"store": "PgVectorStore"}}))
    shutil.rmtree(current(saved) / "store")
    code, found = doctor(saved)
    assert code == 0
    assert "PgVectorStore" in found["elsewhere"]["told"]


def test_a_library_that_is_absent_or_too_old_is_a_problem_and_an_extra_is_not(monkeypatch):
    lines = ["torch<3,>=2.7", "transformers>=5.23", "no-such-thing>=1", 'other-absent; extra == "qdrant"']
    versions = {"torch": "1.0", "transformers": "5.30", "fedrag": "0.1.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    from importlib import metadata

    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    monkeypatch.setattr(metadata, "version", version)
    found = {finding.name: finding for finding in _libraries()}
    assert found["torch"] == Finding("torch", "problem", "is 1.0, fedrag wants <3,>=2.7")
    assert found["transformers"].state == "fine"
    assert found["no-such-thing"].state == "problem"
    assert found["extra qdrant"].state == "known"
    assert "fedrag[qdrant]" in found["extra qdrant"].told


def test_the_hub_is_asked_only_when_it_is_wished():
    code, found = doctor("--hub")  # the tests are offline
    assert code == 1
    assert "HF_HUB_OFFLINE" in found["hub"]["told"]
