"""`fedrag doctor`: is everything here that fedrag needs, and is a saved system whole?

Each finding is a line: fine, worth knowing, or a problem, of which one makes the exit code 1. A secret is never shown,
only whether there is one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedrag.errors import FedRAGError

_MARKS = {"fine": "  ", "known": "- ", "problem": "! "}
_FOR = {
    "accelerated": "approximate search over many documents",
    "documents": "PDF, Word and HTML files",
    "federated": "training at many sites",
    "haystack": "parts for Haystack",
    "langchain": "parts for LangChain",
    "llamaindex": "parts for LlamaIndex",
    "mcp": "knowledge from MCP servers",
    "openai": "models behind an OpenAI-like address",
    "pgvector": "documents in PostgreSQL",
    "qdrant": "documents in Qdrant",
    "quantised": "models in 4 or 8 bits, on a GPU",
    "serve": "fedrag serve",
    "simulation": "federated training on one machine",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal["fine", "known", "problem"]
    told: str


def doctor(
    system: Annotated[Path | None, typer.Argument(help="Saved system to look at too.", show_default=False)] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Ask whether the model hub can be reached.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at versions, hardware, extras and a saved system.

    The exit code is 1 where there is a problem.
    """
    found: list[Finding] = []
    for finding in _findings(system, hub):
        found.append(finding)
        if not json_:
            typer.echo(f"{_MARKS[finding.state]}{finding.name:22} {finding.told}")
    problems = sum(finding.state == "problem" for finding in found)
    if json_:
        typer.echo(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in found]}))
    elif problems:
        typer.echo(f"{problems} {'problem' if problems == 1 else 'problems'}, marked by !")
    if problems:
        raise typer.Exit(1)


def _findings(system: Path | None, hub: bool) -> Iterator[Finding]:
    yield Finding("python", "fine", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _libraries()
    yield from _hardware()
    yield _hub(hub)
    if system is not None:
        yield from _system(system)


def _libraries() -> Iterator[Finding]:
    """The versions of what fedrag needs, and what of its extras is there."""
    from packaging.requirements import Requirement

    extras: dict[str, list[str]] = {}
    yield Finding("fedrag", "fine", metadata.version("fedrag"))
    for line in metadata.requires("fedrag") or []:
        wanted = Requirement(line)
        extra = next((name for name in _FOR if wanted.marker and f'extra == "{name}"' in str(wanted.marker)), None)
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = None
        if wanted.marker is None:
            if version is None:
                yield Finding(wanted.name, "problem", f"is not installed: pip install '{wanted}'")
            elif not wanted.specifier.contains(version, prereleases=True):
                yield Finding(wanted.name, "problem", f"is {version}, fedrag wants {wanted.specifier}")
            else:
                yield Finding(wanted.name, "fine", version)
        elif extra:
            extras.setdefault(extra, []).extend([wanted.name] if version is None else [])
    for name, missing in sorted(extras.items()):
        told = f"without {', '.join(missing)}: pip install 'fedrag[{name}]'" if missing else "is there"
        yield Finding(f"extra {name}", "known" if missing else "fine", f"{told} ({_FOR[name]})")


def _hardware() -> Iterator[Finding]:
    import torch

    yield Finding("cores", "fine", f"{os.cpu_count()}, torch uses {torch.get_num_threads()}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield Finding("memory", "fine", _size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    yield Finding("disk", "fine", f"{_size(shutil.disk_usage(Path.cwd()).free)} free here")
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    other = "Apple's GPU" if torch.backends.mps.is_available() else "none: models run on the processor"
    yield Finding("gpu", "fine" if names else "known", ", ".join(names) or other)


def _hub(ask: bool) -> Finding:
    from huggingface_hub import HfApi, constants, get_token

    told = f"{constants.ENDPOINT}, {'a token is set' if get_token() else 'no token'}"
    if constants.is_offline_mode():
        return Finding("hub", "problem" if ask else "known", f"{told}; HF_HUB_OFFLINE keeps everything from it")
    if not ask:
        return Finding("hub", "fine", f"{told}; --hub asks whether it can be reached")
    from httpx2 import HTTPError

    try:
        next(iter(HfApi(token=False).list_models(limit=1)), None)
    except (HTTPError, OSError) as error:
        return Finding("hub", "problem", f"{told}; it cannot be reached ({type(error).__name__})")
    return Finding("hub", "fine", f"{told}; it answers")


def _system(system: Path) -> Iterator[Finding]:
    """Whether the folder is whole, its parts load and its vectors are those of its encoder."""
    from safetensors import SafetensorError

    from fedrag.bundles.place import FILE, parts_in
    from fedrag.cli.opening import open_system
    from fedrag.stores.memory import MemoryStore

    try:
        version = parts_in(system)
        for part in sorted(path for path in version.iterdir() if path.is_dir()):
            size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
            yield Finding(f"{part.name}/", "fine", _size(size))
        if (version / "store").is_dir():
            store = MemoryStore.open(version / "store", verify=True)
            yield Finding("store", "fine", f"{len(store)} documents, every byte as it was written")
        elsewhere = json.loads((version / FILE).read_text(encoding="utf-8")).get("elsewhere", {})
        if elsewhere:  # loading wants what only a program can pass
            told = ", ".join(f"its {part} is a {kind}" for part, kind in elsewhere.items())
            yield Finding("elsewhere", "known", f"{told}: models were not loaded")
            return
        rag = open_system(system)
        yield Finding("models", "fine", f"load; {'they answer' if rag.generator else 'they retrieve, none answers'}")
        rag.dense.check_fresh()
        yield Finding("vectors", "fine", f"are of this encoder, {rag.dense.encoder.fingerprint}")
        if len(rag.dense.store):
            rag.retrieve("Is anything here?", k=1)
            yield Finding("retrieval", "fine", "finds documents")
    except (FedRAGError, SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        yield Finding("system", "problem", " ".join(str(error).split()) or type(error).__name__)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
