"""`fedrag index`: a system out of documents, or more documents for one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrag import durable
from fedrag.cli.opening import loading, open_system
from fedrag.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fedrag.cli.indexing import Counts, Indexing
    from fedrag.rag import RAGSystem

_NEW: dict[str, Any] = {"encoder": "all-MiniLM-L6-v2", "generator": "Qwen/Qwen3-0.6B", "lora": 16, "top_k": 5}
_LOOK_EVERY = 2.0  # seconds between two looks at a watched folder


def index(
    documents: Annotated[Path, typer.Argument(help="Folder of documents; or a table.", show_default=False)],
    system: Annotated[Path, typer.Argument(help="Folder to write, or to add to.", show_default=False)],
    encoder: Annotated[str | None, typer.Option(help="Name or folder; new: all-MiniLM-L6-v2.")] = None,
    generator: Annotated[str | None, typer.Option(help="Name, folder, none; new: Qwen/Qwen3-0.6B.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of adapters, 0: none; new: 16.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Documents in a prompt; new: 5.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Passage tokens; 0: no cut.")] = 200,
    overlap: Annotated[int, typer.Option(help="Tokens that passages share.")] = 20,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Leave out, and name, bad files.")] = False,
    repeated: Annotated[bool, typer.Option("--repeated", help="Keep files that say the same.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with what changes, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was done, as JSON.")] = False,
) -> None:
    """Build a system from documents, or add to one.

    Reads txt, md, html, pdf, docx, tables; again: what changed, what is left.
    """
    from fedrag.cli.indexing import Indexing
    from fedrag.data import stream_documents
    from fedrag.data.files import Files
    from fedrag.data.manifest import made_with

    known = durable.exists(system)
    given: dict[str, Any] = {"encoder": encoder, "generator": generator, "lora": lora, "top_k": top_k}
    given = {name: value for name, value in given.items() if value is not None}
    made: dict[str, Any] = {}
    if known:
        made = made_with(system, durable.current(system).name)
        if other := [f"--{name.replace('_', '-')}" for name in given if made.get(name) != given[name]]:
            raise ConfigError(
                f"{system} is a system already, which {' and '.join(other)} cannot change: leave that out to add "
                "documents to it, or name another folder to build a new one"
            )
    durable.check(system)
    tokens, shared = (chunk_tokens, overlap) if chunk_tokens else (None, 0)
    stream_documents(documents, chunk_tokens=tokens, overlap=shared)  # what can be said before any model is loaded
    if documents.is_dir():
        Files(documents, "skip").all()
    if known:
        rag = open_system(system)
        rag.dense.check_fresh()
    else:
        made = {**_NEW, **given}
        rag = _build(**made)
    began = time.monotonic()
    work = Indexing(rag, system, tokens, shared, repeated, made)
    try:
        done = work.go(documents, on_error="skip" if skip_unreadable else "raise")
    except KeyboardInterrupt:
        count = len(rag.dense.store)
        typer.echo(f"\nstopped: {count} passages are saved; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    if watch:
        _say(work, done, err=True)
        done = _watch(work, documents)
    if as_json:
        numbers = {"system": str(system), "passages": len(rag.dense.store), **asdict(done)}
        typer.echo(json.dumps(numbers | {"seconds": round(time.monotonic() - began, 3)}))
    else:
        _say(work, done)


def _say(work: Indexing, done: Counts, *, err: bool = False) -> None:
    gone = f"; {done.removed} removed, which their source no longer has" if done.removed else ""
    told = f" ({done.embedded} new or changed{gone})" if done.embedded or gone else " (nothing changed)"
    typer.echo(f"{len(work.rag.dense.store)} passages in {work.system}{told}", err=err)


def _watch(work: Indexing, documents: Path) -> Counts:
    """Look at the files every now and then, and take in what changed; return what was done in all."""
    from fedrag.cli.indexing import Counts

    total, before = work.counts, _state(documents)
    typer.echo(f"watching {documents}; Ctrl-C ends it", err=True)
    try:
        while True:
            time.sleep(_LOOK_EVERY)
            if (now := _state(documents)) == before:
                continue
            before = now
            try:
                done = work.go(documents, on_error="skip")
            except DataError as error:  # a table half written, a folder that is empty for now
                typer.echo(f"fedrag: {error}", err=True)
                continue
            total = Counts(
                total.embedded + done.embedded, done.unchanged, total.removed + done.removed, done.files or total.files
            )
            if done.embedded or done.removed:
                _say(work, done, err=True)
    except KeyboardInterrupt:
        return total


def _state(documents: Path) -> frozenset[tuple[str, int, int]]:
    """Names, sizes and times of change of all files."""
    found: set[tuple[str, int, int]] = set()
    for path in documents.rglob("*") if documents.is_dir() else [documents]:
        try:
            state = path.stat()
        except OSError:  # gone between the listing and the look
            continue
        found.add((str(path), state.st_size, state.st_mtime_ns))
    return frozenset(found)


def _build(encoder: str, generator: str, lora: int, top_k: int) -> RAGSystem:
    from fedrag.encoders.sentence import SentenceEncoder
    from fedrag.generators.causal import CausalLM
    from fedrag.rag import RAGSystem
    from fedrag.retrievers.dense import DenseRetriever
    from fedrag.stores.memory import MemoryStore

    with loading(f"the encoder {encoder!r}"):
        towers = SentenceEncoder(encoder)
    reader = None
    if generator != "none":
        with loading(f"the generator {generator!r}"):
            reader = CausalLM(generator, lora=lora or None)
    return RAGSystem(retriever=DenseRetriever(towers, MemoryStore()), generator=reader, top_k=top_k)
