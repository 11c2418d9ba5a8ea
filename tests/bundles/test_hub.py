"""Push and pull through the hub's real client, in a process of its own, to a hub on 127.0.0.1."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bundles.hub_stub import TOKEN, Hub
from fedrag import RAGSystem
from fedrag.bundles.hub import collect
from fedrag.cli import app
from fedrag.durable import current
from fedrag.errors import InputError
from systems import tiny_system


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "rag"
    tiny_system(lora=2).save(folder)
    return folder


@pytest.fixture
def hub():
    with Hub() as running:
        yield running


def hubbed(hub, code, tmp_path, *, token=TOKEN, retries=True):
    """Run code where the hub is `hub`; its last line of stdout."""
    quick = "" if retries else "import huggingface_hub.utils._http as h\nh.time.sleep = lambda seconds: None\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub if isinstance(hub, str) else hub.url, "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore"}
    env |= {"HF_TOKEN": token} if token else {}
    return subprocess.run(
        [sys.executable, "-c", f"{quick}from pathlib import Path\nfrom fedrag.bundles.hub import pull, push\n{code}"],
        capture_output=True,
        text=True,
        timeout=90,
        env=env,
    )


def test_a_clone_of_a_repository_is_a_system(saved, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(current(saved), clone)
    assert not RAGSystem.load(saved).diff(RAGSystem.load(clone))
    assert collect(clone, "me/rag").keys() == collect(current(saved), "me/rag").keys()
    assert CliRunner().invoke(app, ["card", str(clone)]).exit_code == 0
    assert CliRunner().invoke(app, ["doctor", str(clone), "--json"]).stdout.count('"name": "retrieval"') == 1
    done = CliRunner().invoke(app, ["export", str(clone), str(tmp_path / "plain")])
    assert done.exit_code == 0, done.exception


@pytest.mark.slow
def test_a_system_goes_to_the_hub_and_comes_back_the_same(hub, saved, tmp_path):
    code = f"""
from fedrag import RAGSystem
rag = RAGSystem.load({str(saved)!r})
print(rag.push_to_hub("me/rag", include_store=True))
again = RAGSystem.from_pretrained("me/rag")
print(rag.diff(again) or "equal")
answer, other = (r.query("Which key has clerk 3 ?") for r in (rag, again))
assert answer.hits == other.hits and answer.text == other.text
"""
    done = hubbed(hub, code, tmp_path)
    assert done.returncode == 0, done.stderr
    url, told = done.stdout.splitlines()
    assert url.startswith(f"{hub.url}/me/rag/commit/")
    assert told == "equal"
    assert hub.repos["me/rag"]["private"] is True
    assert len(hub.repos["me/rag"]["commits"]) == 2  # the empty one, and the whole system in one
    files = hub.files("me/rag")
    assert {"README.md", "fedrag.json", "encoder/modules.json", "generator/adapter_config.json"} <= files.keys()
    assert not any(name == "CURRENT" or name.startswith("v0") for name in files)
    version = current(saved)
    for name in ("encoder/model.safetensors", "generator/adapter_model.safetensors"):
        assert files[name] == (version / name).read_bytes()
    sent = b"".join(body for _, _, _, body in hub.requests) + b"".join(hub.objects.values())
    for secret in (TOKEN, str(saved), str(tmp_path), str(Path.home()) + "/"):
        assert secret.encode() not in sent
    assert not [path for _, path, who, _ in hub.requests if path.startswith("/lfs/") and who]


def test_documents_stay_at_home_unless_asked_for(hub, saved, tmp_path):
    done = hubbed(
        hub,
        f"push(Path({str(saved)!r}), 'me/rag', include_store=True)\npush(Path({str(saved)!r}), 'me/rag')\n"
        "print(pull('me/rag'))",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    files = hub.files("me/rag")
    assert not [name for name in files if name.startswith("store")]  # the second push took them away
    assert not [data for data in files.values() if b"The key of clerk" in data]
    assert b'RAGSystem.from_pretrained("me/rag", store=store)' in files["README.md"]
    folder = done.stdout.strip()
    with pytest.raises(InputError, match="pass store="):
        RAGSystem.load(folder)
    store = RAGSystem.load(saved).dense.store
    assert RAGSystem.load(folder, store=store).query("Which key has clerk 3 ?").hits


def test_a_revision_is_had_again_and_without_the_hub_the_cache_serves(hub, saved, tmp_path):
    code = f"""
import json
first = push(Path({str(saved)!r}), "me/rag").rsplit("/", 1)[1]
settings = Path({str(current(saved))!r}) / "fedrag.json"
old = settings.read_text()
settings.write_text(old.replace('"top_k": 3', '"top_k": 7'))
push(Path({str(saved)!r}), "me/rag")
settings.write_text(old)
print([json.loads((pull("me/rag", revision=r) / "fedrag.json").read_text())["top_k"] for r in (first, None)])
"""
    done = hubbed(hub, code, tmp_path)
    assert done.stdout.strip() == "[3, 7]", done.stderr
    hub.server.shutdown()
    hub.server.server_close()
    again = hubbed(hub.url, "print((pull('me/rag') / 'fedrag.json').is_file())", tmp_path, retries=False)
    assert again.stdout.strip() == "True", again.stderr


FAULTS = [
    ("POST", "/preupload/", 401, "hf auth login"),
    ("POST", "/preupload/", 403, "write access"),
    ("POST", "/preupload/", 404, "check the name"),
    ("POST", "/commit/", 409, "at the same time"),
    ("POST", "/commit/", 412, "at the same time"),
    ("POST", "/commit/", 503, "try again later"),
    ("PUT", "/lfs/", 500, "try again later"),
    ("POST", "/info/lfs", 0, "broke off"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[1]}-{fault[2]}")
def test_a_push_that_fails_is_named_and_changes_nothing(hub, saved, tmp_path, fault):
    hub.create("me/rag", True)
    hub.fault = fault[:3]
    before = hub.files("me/rag")
    code = f"""
from fedrag.errors import FedRAGError
try:
    push(Path({str(saved)!r}), "me/rag")
except FedRAGError as error:
    print(type(error).__name__, error)
"""
    done = hubbed(hub, code, tmp_path, retries=False)
    assert done.stdout.startswith("HubError me/rag: "), done.stderr
    assert fault[3] in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert hub.files("me/rag") is before


def test_a_commit_in_between_is_not_overwritten(hub, saved, tmp_path):
    hub.create("me/rag", True)
    hub.between = lambda: hub.commit("me/rag", {"theirs.txt": b"a colleague's"})
    code = f"""
from fedrag.errors import FedRAGError
try:
    push(Path({str(saved)!r}), "me/rag")
except FedRAGError as error:
    print(type(error).__name__, error)
"""
    done = hubbed(hub, code, tmp_path, retries=False)
    assert "at the same time" in done.stdout, done.stderr
    assert list(hub.files("me/rag")) == ["theirs.txt"]


def test_a_pull_that_breaks_off_leaves_nothing_that_loads_and_goes_on_later(hub, saved, tmp_path):
    code = """
from fedrag.errors import FedRAGError
try:
    print(pull("me/rag"))
except FedRAGError as error:
    print(type(error).__name__, error)
"""
    done = hubbed(hub, f"push(Path({str(saved)!r}), 'me/rag', include_store=True)", tmp_path)
    assert done.returncode == 0, done.stderr
    hub.fault = ("GET", "encoder/model.safetensors", 0)
    broken = hubbed(hub, code, tmp_path, retries=False)
    assert broken.stdout.startswith("HubError me/rag: "), broken.stdout + broken.stderr
    assert not list((tmp_path / "hf").rglob("encoder/model.safetensors"))
    hub.fault = None
    whole = hubbed(hub, code, tmp_path)
    assert RAGSystem.load(whole.stdout.strip()).query("Which key has clerk 3 ?").hits


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("pull('me/absent')", "HubError me/absent: the hub answered 404"),
        ("pull('me/model')", "InputError me/model holds no RAG system"),
        ("pull('no name/at all')", "InputError 'no name/at all' is no name"),
        ("push(saved, 'me/open')", "InputError me/open is there and public"),
    ],
)
def test_what_is_asked_wrongly_is_named(hub, saved, tmp_path, code, told):
    hub.create("me/model", True)
    hub.create("me/open", False)
    code = f"""
from fedrag.errors import FedRAGError
saved = Path({str(saved)!r})
try:
    {code}
except FedRAGError as error:
    print(type(error).__name__, error)
"""
    done = hubbed(hub, code, tmp_path, retries=False)
    assert done.stdout.startswith(told), done.stdout + done.stderr


def test_nobody_there_is_named(saved, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
from fedrag.errors import FedRAGError
for ask in (lambda: push(Path({str(saved)!r}), "me/rag"), lambda: pull("me/rag")):
    try:
        ask()
    except FedRAGError as error:
        print(type(error).__name__, error)
"""
    done = hubbed(f"http://127.0.0.1:{port}", code, tmp_path, retries=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.startswith("HubError me/rag: the hub cannot be reached") for line in lines)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("generator/config.json", json.dumps({"_name_or_path": "/home/ann/llm"}), "path of this machine"),
        ("README.md", "Trained in /Users/ann/rag.", "path of this machine"),
        ("encoder/config.json", json.dumps({"key": "hf_" + "x" * 34}), "token"),
        ("encoder/notes.txt", "the secret of this test", "token"),
    ],
)
def test_what_tells_of_this_machine_is_not_pushed(saved, tmp_path, name, text, told):
    version = tmp_path / "version"
    (version / name).parent.mkdir(parents=True, exist_ok=True)
    (version / name).write_text(text)
    with pytest.raises(InputError, match=told):
        collect(version, "me/rag", include_store=True, secret="the secret of this test")


def test_only_parts_that_are_known_are_pushed(tmp_path):
    for name in ("encoder/model.safetensors", "encoder/optimizer.pt", "generator/trainer_state.json", ".env", "notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(collect(tmp_path, "me/rag")) == ["encoder/model.safetensors"]
