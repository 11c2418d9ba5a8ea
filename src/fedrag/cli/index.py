"""`fedrag index`: a system out of documents, or more documents for one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrag import durable
from fedrag.cli.opening import loading, open_system
from fedrag.errors import ConfigError
from fedrag.progress import track

if TYPE_CHECKING:
    from fedrag.rag import RAGSystem
    from fedrag.types import Document

_SAVE_EVERY = 60.0  # seconds of indexing between two saves


def index(
    documents: Annotated[Path, typer.Argument(help="Folder of txt/md; or jsonl, csv, parquet.", show_default=False)],
    system: Annotated[Path, typer.Argument(help="Folder to write, or to add to.", show_default=False)],
    encoder: Annotated[str | None, typer.Option(help="Name or folder; new: all-MiniLM-L6-v2.")] = None,
    generator: Annotated[str | None, typer.Option(help="Name or folder; new: Qwen/Qwen3-0.6B.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of adapters, 0: none; new: 16.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Documents in a prompt; new: 5.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens in a passage; 0: no cut.")] = 200,
    overlap: Annotated[int, typer.Option(help="Tokens that passages share.")] = 20,
) -> None:
    """Build a system from documents, or add documents to one. Interrupted, it goes on where it stopped."""
    from fedrag.data import read_documents

    known = durable.exists(system)
    given = {"--encoder": encoder, "--generator": generator, "--lora": lora, "--top-k": top_k}
    if known and (set_ := [name for name, value in given.items() if value is not None]):
        raise ConfigError(
            f"{system} is a system already, which {' and '.join(set_)} cannot change: leave that out to add documents "
            "to it, or name another folder to build a new one"
        )
    chunks = read_documents(documents, chunk_tokens=chunk_tokens or None, overlap=overlap if chunk_tokens else 0)
    if known:
        rag = open_system(system)
    else:
        rag = _build(
            "all-MiniLM-L6-v2" if encoder is None else encoder,
            "Qwen/Qwen3-0.6B" if generator is None else generator,
            16 if lora is None else lora,
            5 if top_k is None else top_k,
        )
    removed = _index(rag, chunks, system)
    gone = f"; {removed} removed, which their source no longer has" if removed else ""
    typer.echo(f"{len(rag.dense.store)} passages in {system}{gone}")


def _build(encoder: str, generator: str, lora: int, top_k: int) -> RAGSystem:
    from fedrag.encoders.sentence import SentenceEncoder
    from fedrag.generators.causal import CausalLM
    from fedrag.rag import RAGSystem
    from fedrag.retrievers.dense import DenseRetriever
    from fedrag.stores.memory import MemoryStore

    with loading(f"the encoder {encoder!r}"):
        towers = SentenceEncoder(encoder)
    with loading(f"the generator {generator!r}"):
        reader = CausalLM(generator, lora=lora or None)
    return RAGSystem(retriever=DenseRetriever(towers, MemoryStore()), generator=reader, top_k=top_k)


def _index(rag: RAGSystem, documents: list[Document], system: Path) -> int:
    """Add documents, saving now and then; an interruption saves what is there and says how to go on.

    Return how many passages were removed because their text was read again and has them no more.
    """
    size = 16 * rag.dense.batch_size
    saved = time.monotonic()
    try:
        for start in track(range(0, len(documents), size), desc="index", unit=f"x{size}"):
            rag.add(documents[start : start + size], progress=False)
            if time.monotonic() - saved > _SAVE_EVERY:
                rag.save(system)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if len(rag.dense.store):
            rag.save(system)
        typer.echo(
            f"\nstopped: {len(rag.dense.store)} passages are saved; the same command goes on from there", err=True
        )
        raise typer.Exit(130) from None
    produced = {document.id for document in documents}
    again = {_origin(document) for document in documents}
    store = rag.dense.store
    outdated = [d.id for d in store.documents() if d.id not in produced and _origin(d) in again]
    removed = store.remove(outdated)
    rag.save(system)
    return removed


def _origin(document: Document) -> str:
    """The id of the text that a passage was cut from; of a passage that is a whole row, its own."""
    whole, _, place = document.id.rpartition("#")
    is_piece = {"start", "end"} <= document.metadata.keys() or document.metadata.get("source") == whole
    return whole if is_piece and place.isdecimal() else document.id
