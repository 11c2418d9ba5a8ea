"""`fedrag evaluate`: what a system is worth, every number with its interval."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fedrag.cli.opening import System, open_system
from fedrag.errors import InputError


def evaluate(
    system: System,
    examples: Annotated[Path, typer.Argument(help="Questions with answers or positives.", show_default=False)],
    k: Annotated[int | None, typer.Option(help="Documents in the prompt; the system's own setting by default.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report, every answer with it, as JSON.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="An earlier report: differences, intervals, p-values."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object: means, no answers.")] = False,
) -> None:
    """Measure a system, every number with its interval."""
    from fedrag.data import read_examples
    from fedrag.evaluation import Report
    from fedrag.evaluation import evaluate as measure

    earlier = Report.load(compare) if compare else None  # a mistake in it shows before the measuring
    if save:
        _check(save)  # as one in this
    asked = read_examples(examples)
    report = measure(open_system(system), asked, k=k)
    if save:
        report.save(save)
    change = report.compare(earlier) if earlier else None
    if json_:
        told: dict[str, Any] = {"questions": len(report.records)}
        told["metrics"] = {name: asdict(metric) for name, metric in report.metrics.items()}
        typer.echo(json.dumps(told | ({"comparison": asdict(change)} if change else {})))
        return
    typer.echo(str(report))
    if change:
        typer.echo(str(change))


def _check(save: Path) -> None:
    """Raise `InputError` for a report's path that cannot be written, before hours of measuring are lost to it."""
    folder = next((parent for parent in save.absolute().parents if parent.exists()), None)
    if save.is_dir() or folder is None or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--save {save} cannot be written: give the path of a file, new or to replace")
