"""The command: a subcommand a file. Each imports what it needs when it runs, so that `fedrag --help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrag.cli import federate
from fedrag.cli.ask import ask
from fedrag.cli.card import card
from fedrag.cli.compare import compare
from fedrag.cli.diff import diff
from fedrag.cli.doctor import doctor
from fedrag.cli.evaluate import evaluate
from fedrag.cli.export import export
from fedrag.cli.index import index
from fedrag.cli.init import init
from fedrag.cli.mine import mine
from fedrag.cli.push import push
from fedrag.cli.questions import questions
from fedrag.cli.reindex import reindex
from fedrag.cli.report import report
from fedrag.cli.schema import print_schema
from fedrag.cli.serve import serve
from fedrag.cli.train import train
from fedrag.cli.validate import validate

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune a retrieval-augmented generation system, and measure what it gained.",
)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the report and the tuned system.")] = Path("runs/quickstart"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and sooner: a check that all works.")] = False,
    encoder: Annotated[str | None, typer.Option(help="Tune this encoder (name or folder) on the real text.")] = None,
    controls: Annotated[bool, typer.Option("--controls", help="Train control regimes too; twice the time.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs with different seeds; the table shows their mean.")] = 1,
) -> None:
    """Tune on data that comes along; show before and after.

    A retriever on real text, a whole RAG system on an invented world, and a federation.
    """
    from fedrag.quickstart.run import run

    run(out, quick=quick, seeds=seeds, encoder=encoder, controls=controls)


app.command()(index)
app.command()(reindex)
app.command()(ask)
app.command()(init)
app.command("schema")(print_schema)
app.command()(validate)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(report)
app.command()(questions)
app.command()(mine)
app.command()(diff)
app.command()(card)
app.command()(export)
app.command()(push)
app.command()(serve)
app.command()(doctor)
app.add_typer(federate.app, name="federate")
