"""`fedrag evaluate`: what a system is worth, every number with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrag.cli.opening import System, open_system


def evaluate(
    system: System,
    examples: Annotated[Path, typer.Argument(help="Questions with answers or positives.", show_default=False)],
    k: Annotated[int | None, typer.Option(help="Documents in the prompt; the system's own setting by default.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report, every answer with it, as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier report: differences, intervals, p-values.")] = None,
) -> None:
    """Measure a system: every number with n and a 95 % interval."""
    from fedrag.data import read_examples
    from fedrag.evaluation import Report
    from fedrag.evaluation import evaluate as measure

    report = measure(open_system(system), read_examples(examples), k=k)
    typer.echo(str(report))
    if save:
        report.save(save)
    if compare:
        typer.echo(str(report.compare(Report.load(compare))))
