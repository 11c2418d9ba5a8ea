"""`fedrag ask`: a question to a system, or a conversation with it, and the sources of each answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrag.cli.opening import System, open_system
from fedrag.errors import ConfigError, FedRAGError, InputError

if TYPE_CHECKING:
    from fedrag.rag import RAGSystem
    from fedrag.types import Hit

_COMMANDS = "/k 3: documents in the prompt, /sources: show them or not, /quit"


def ask(
    system: System,
    question: Annotated[str | None, typer.Argument(help="None: ask for questions.", show_default=False)] = None,
    k: Annotated[int | None, typer.Option(help="Documents in the prompt; the system's own setting by default.")] = None,
    where: Annotated[str | None, typer.Option(help='Filter as JSON: {"field": ..., "operator": ...}')] = None,
    sources: Annotated[bool, typer.Option(help="List the documents that the answer was made from.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object for each question.")] = False,
) -> None:
    """Ask a system a question, or many.

    The answer appears as it is written.

    Without a question, it asks for them; what is piped in is taken line by line.
    """
    asking = _Asking(k, _filter(where), sources, json_)
    rag = open_system(system)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no text is named, and the next one asked
    if question is not None:
        asking.answer(rag, question)
        return
    failed = False
    for asked in _typed(asking) if sys.stdin.isatty() else filter(None, map(str.strip, sys.stdin)):
        try:
            asking.answer(rag, asked)
        except FedRAGError as error:  # of this question: the next one may do
            typer.echo(f"fedrag: {error}", err=True)
            failed = True
    if failed and not sys.stdin.isatty():
        raise typer.Exit(1)


@dataclass
class _Asking:
    """How questions are asked; a person at a terminal may change it between two of them."""

    k: int | None
    where: dict[str, Any] | None
    sources: bool
    json: bool

    def answer(self, rag: RAGSystem, question: str) -> None:
        """Ask, and print what comes."""
        if not question.isascii() and question.encode("utf-8", "replace").decode() != question:
            raise InputError("the question is not written in UTF-8: convert it, or the file that it comes from")
        if rag.generator is None:
            pieces, hits = None, rag.retrieve(question, k=self.k, where=self.where)
        else:
            stream = rag.stream(question, k=self.k, where=self.where)
            pieces, hits = stream.pieces, stream.hits
        if self.json:
            answer = None if pieces is None else "".join(pieces)
            found = [{"id": hit.document.id, "score": hit.score, "text": hit.document.text} for hit in hits]
            typer.echo(json.dumps({"question": question, "answer": answer, "sources": found}))
            return
        if pieces is not None:
            for piece in pieces:
                typer.echo(_shown(piece), nl=False)
            typer.echo()
        if self.sources:
            for place, hit in enumerate(hits, start=1):
                typer.echo(_source(place, hit))


def _source(place: int, hit: Hit) -> str:
    text = _shown(" ".join(hit.document.text.split()))
    return f"  [{place}] {hit.score:.3f}  {_shown(hit.document.id)}  {text[:80]}"


def _shown(text: str) -> str:
    """The text without what a terminal would obey: a document may hold anything."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text)


def _typed(asking: _Asking) -> Iterator[str]:
    """The questions that a person types, until the end of the input; commands in between are carried out."""
    if find_spec("readline"):
        import_module("readline")  # lines can be edited, and had again in this session; nothing is kept on disk
    typer.echo(_COMMANDS, err=True)
    while True:
        try:
            line = input("? ").strip()
        except EOFError:
            typer.echo(err=True)
            return
        command, _, value = line.partition(" ")
        if command in ("/quit", "/exit"):
            return
        if command == "/k" and value.strip().isdecimal():
            asking.k = int(value)
        elif command == "/sources":
            asking.sources = not asking.sources
        elif command.startswith("/"):
            typer.echo(_COMMANDS, err=True)
        elif line:
            yield line


def _filter(where: str | None) -> dict[str, Any] | None:
    if where is None:
        return None
    try:
        given: Any = json.loads(where)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--where {where!r} is no JSON ({error})") from None
    if not isinstance(given, dict):
        raise ConfigError(
            f'--where takes an object, as in {{"field": "year", "operator": "==", "value": 2024}}: {where!r}'
        )
    return given
