"""Systems on a model hub: pushed as plain folders in one commit, pulled through the hub's own cache.

    rag.push_to_hub("me/my-rag")                     # private; documents stay at home
    rag = RAGSystem.from_pretrained("me/my-rag", store=MemoryStore.open("documents"))

    rag.push_to_hub("me/my-rag", include_store=True)
    rag = RAGSystem.from_pretrained("me/my-rag")

A store is data, and data may be private: it is pushed when asked for, and never otherwise. The folder on the hub then
says that its store is elsewhere, and loading it wants one. What else is pushed is known by name (the models, the card,
the settings), and read before anything leaves: a path of this machine or a token in a text file stops the push.

A push is one commit, so that others see the old system or the new one. Which hub, and with whose token, is the
business of `huggingface_hub`: `HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from fedrag.bundles.page import published
from fedrag.bundles.place import FILE, parts_in
from fedrag.errors import FedRAGError, InputError

_CARD = "README.md"
_MODELS = ("encoder", "generator", "reranker")
_DATA = ("store", "lexical")
_RUN = re.compile(r"(trainer_state\.json|(optimizer|scheduler|training_args|rng_state).*|.*\.(token|key|pem)|\.env.*)")
_UNSAFE = ["*.py", "*.pkl", "*.pickle", "*.pt", "*.pth", "*pytorch_model*.bin"]  # nothing of these is ever needed
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}|\b(sk|ghp|gho)[-_][A-Za-z0-9_-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY")
_ROOTS = rb"home|Users|root|tmp|var|private|mnt|data|work|scratch|workspace"
_PATH = re.compile(rb"""["'`(\s](/(""" + _ROOTS + rb""")/[\w.-]|[A-Z]:\\\\)""")
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # whatever was in the text they came from
_READ = 1 << 24  # bytes: no settings are longer
_CURES = {
    401: "log in with `hf auth login`, or pass a token",
    403: "the token may not do this: take one with write access, or ask for access",
    404: "check the name and the revision; a private repository needs a token that may read it",
    409: "somebody changed the repository at the same time: do it again",
    412: "somebody changed the repository at the same time: do it again",
    413: "it is too large for this hub",
    429: "it is asked too often: wait, and do it again",
}


class HubError(FedRAGError, ConnectionError):
    """The hub refused, broke off or cannot be reached. Nothing was changed there, or here."""


def push(
    folder: Path, repo_id: str, *, private: bool = True, token: str | None = None, include_store: bool = False
) -> str:
    """Put a saved system into a repository of the hub, in one commit; return the commit's address.

    What an earlier push left there, and this one lacks, goes. Raises `InputError` for what must not leave this machine,
    for a repository that others can read although `private` is asked, `HubError` where the hub does not take it.
    """
    content = collect(parts_in(folder), repo_id, include_store=include_store, secret=token)
    api = HfApi(token=token)
    with asked(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.model_info(repo_id)
        if private and there.private is False:
            raise InputError(f"{repo_id} is there and public: pass private=False to push into it, or name another")
        kept = {*content, ".gitattributes"}
        gone = [CommitOperationDelete(name) for name in api.list_repo_files(repo_id) if name not in kept]
        added = [CommitOperationAdd(name, what) for name, what in sorted(content.items())]
        done = api.create_commit(
            repo_id, [*added, *gone], commit_message="Push a RAG system with fedrag", parent_commit=there.sha
        )
    return str(done.commit_url)


def saved_and_pushed(save: Callable[[Path], None], repo_id: str, **settings: Any) -> str:
    """Let `save` write the system into a folder that goes afterwards, and push that; `settings` are those of `push`."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "system"
        save(folder)
        return push(folder, repo_id, **settings)


def pull(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a pushed system, for `RAGSystem.load`; what is in the hub's cache is not fetched again.

    Raises `InputError` for a repository that holds no system, `HubError` where it cannot be had.
    """
    with asked(repo_id):
        try:
            hf_hub_download(repo_id, FILE, revision=revision, token=token)
        except LocalEntryNotFoundError:  # the hub is out of reach, and so is the cache
            raise
        except EntryNotFoundError:
            raise InputError(f"{repo_id} holds no RAG system: it has no {FILE}; name one that fedrag pushed") from None
        return Path(snapshot_download(repo_id, revision=revision, token=token, ignore_patterns=_UNSAFE))


def collect(
    version: Path, repo_id: str, *, include_store: bool = False, secret: str | None = None
) -> dict[str, bytes | Path]:
    """Return what of a saved system goes to the hub, by its name there; checked, and nothing else."""
    parts = (*_MODELS, *_DATA) if include_store else _MODELS
    content: dict[str, bytes | Path] = {}
    for path in sorted(version.rglob("*")):
        name = path.relative_to(version).as_posix()
        known = name.split("/")[0] in parts or name in (FILE, _CARD)
        if known and path.is_file() and not _RUN.fullmatch(path.name):
            content[name] = path
    if not include_store and (version / "store").is_dir():
        content |= _without_store(version)
    if _CARD in content:
        text = (version / _CARD).read_text(encoding="utf-8")
        content[_CARD] = published(text, repo_id, with_store=include_store).encode()
    for name, what in content.items():
        _check(name, what, secret)
    return content


@contextmanager
def asked(repo_id: str) -> Generator[None]:
    """Say in one line, without the token, what went wrong between here and the hub."""
    try:
        yield
    except FedRAGError:
        raise
    except HFValidationError:
        raise InputError(f"{repo_id!r} is no name of a repository: give it as user/name") from None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        whole: BaseException | None = error
        while whole is not None and getattr(whole, "response", None) is None:
            whole = whole.__cause__
        status = getattr(getattr(whole, "response", None), "status_code", None)
        if status is None:
            reason = f"the hub cannot be reached, or broke off ({type(error).__name__})"
            cure = "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"
        else:
            reason = f"the hub answered {status}"
            cure = _CURES.get(status, "try again later" if status >= 500 else "check the name and the token")
        raise HubError(f"{repo_id}: {reason}; {cure}") from None


def _without_store(version: Path) -> dict[str, bytes | Path]:
    """The settings of a folder whose store stays where it is."""
    saved: dict[str, Any] = json.loads((version / FILE).read_text(encoding="utf-8"))
    saved["elsewhere"] = {**saved.get("elsewhere", {}), "store": "MemoryStore"}
    return {FILE: json.dumps(saved, indent=2).encode()}


def _check(name: str, what: bytes | Path, secret: str | None) -> None:
    """Refuse a text file that tells of this machine or opens a door; weights and documents are no text files."""
    path = Path(name)
    if path.suffix not in (".json", ".md", ".txt", ".jinja", ".yaml", ".yml", "") or path.name in _VOCABULARY:
        return
    if path.parts[0] in _DATA:
        return
    if isinstance(what, Path):
        with what.open("rb") as file:
            what = file.read(_READ)
    homes = [str(Path.home()).encode()] if len(Path.home().parts) > 1 else []
    if _TOKEN.search(what) or (secret and secret.encode() in what):
        raise InputError(f"{name} holds what looks like a token or a key: take it out of the folder before the push")
    if _PATH.search(what) or any(home + b"/" in what for home in homes):
        raise InputError(f"{name} names a path of this machine: take it out before the push")
