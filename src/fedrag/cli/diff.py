"""`fedrag diff`: what one saved system has another way than another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedrag.cli.opening import open_system


def diff(
    before: Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Folder of the other.", show_default=False)],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object, every id in it.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 where they differ.")] = False,
) -> None:
    """Compare two systems: settings, weights, documents."""
    found = open_system(before).diff(open_system(after))
    typer.echo(json.dumps(found.plain()) if json_ else str(found))
    if exit_code and found:
        raise typer.Exit(1)
