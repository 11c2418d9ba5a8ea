"""`fedrag ask`: a question to a system, and the sources of its answer."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrag.cli.opening import System, open_system


def ask(
    system: System,
    question: Annotated[str, typer.Argument(show_default=False)],
    k: Annotated[int | None, typer.Option(help="Documents in the prompt; the system's own setting by default.")] = None,
    sources: Annotated[bool, typer.Option(help="List the documents that the answer was made from.")] = True,
) -> None:
    """Ask a system a question; the answer appears as it is written."""
    answer = open_system(system).stream(question, k=k)
    for piece in answer:
        typer.echo(piece, nl=False)
    typer.echo()
    if sources:
        for place, hit in enumerate(answer.hits, start=1):
            text = " ".join(hit.document.text.split())
            typer.echo(f"  [{place}] {hit.score:.3f}  {hit.document.id}  {text[:80]}")
