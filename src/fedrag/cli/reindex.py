"""`fedrag reindex`: the documents of a system embedded again, by its own encoder or by another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrag.cli.opening import System, loading, open_system

if TYPE_CHECKING:
    from fedrag.rag import RAGSystem


def reindex(
    system: System,
    encoder: Annotated[str | None, typer.Option(help="Name or folder; else the system's own.")] = None,
    save_to: Annotated[Path | None, typer.Option(help="Folder to write; else the system's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was done, as JSON.")] = False,
) -> None:
    """Embed a system's documents again, with another encoder too.

    The old vectors serve until the last new one is there. Interrupted, it goes on where it stopped.
    """
    rag = open_system(system)
    if encoder is not None:
        rag = _with(rag, encoder)
    try:
        count = rag.dense.refresh()
    except KeyboardInterrupt:
        typer.echo(f"\nstopped: {system} is as it was; the same command goes on with what is missing", err=True)
        raise typer.Exit(130) from None
    target = system if save_to is None else save_to
    if count or save_to is not None:
        rag.save(target)
    if as_json:
        numbers = {"system": str(target), "passages": len(rag.dense.store), "embedded": count}
        typer.echo(json.dumps(numbers | {"encoder": rag.dense.store.fingerprint}))
    else:
        done = f"{count} embedded again" if count else "all of them fresh"
        typer.echo(f"{len(rag.dense.store)} passages in {target}, {done}")


def _with(rag: RAGSystem, encoder: str) -> RAGSystem:
    """The system with another encoder in its retriever, which may also know words, or rerank.

    Where that is a dense one alone, and the two encoders measure otherwise, the temperature is the new one's own.
    """
    from fedrag.encoders.sentence import SentenceEncoder
    from fedrag.rag import RAGSystem

    with loading(f"the encoder {encoder!r}"):
        towers = SentenceEncoder(encoder)
    same = towers.model.similarity_fn_name == rag.dense.encoder.model.similarity_fn_name
    rag.dense.encoder = towers
    return RAGSystem(
        retriever=rag.retriever,
        generator=rag.generator,
        top_k=rag.top_k,
        prompt=rag.prompt,
        reader=rag.reader,
        temperature=None if rag.retriever is rag.dense and not same else rag.temperature,
    )
