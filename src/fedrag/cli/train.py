"""`fedrag train`: tune a system as a recipe says."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedrag.errors import ConfigError

Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="Overrides, as stages.0.training.max_steps=10.", show_default=False),
]


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; `fedrag init` writes one.", show_default=False)] = Path(),
    changes: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print an example recipe and stop.")] = False,
) -> None:
    """Tune a system as a recipe says."""
    from fedrag.cli import recipe as recipes

    if example:
        typer.echo((recipes.__doc__ or "").split("```")[1].removeprefix("yaml\n"), nl=False)
        return
    if recipe == Path():
        raise ConfigError("name a recipe: fedrag train recipe.yaml; `fedrag init` writes one")
    from fedrag.cli.building import run_folder_of
    from fedrag.cli.run import comparison, run_recipe

    checked = recipes.read_recipe(recipe, changes or [])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no result
            result = run_recipe(checked, resume=resume)
    except KeyboardInterrupt:
        typer.echo(
            f"\nstopped: what is done is kept in {run_folder_of(checked)}; the same command with --resume goes on",
            err=True,
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(result))
        return
    if table := comparison(result):
        typer.echo(table)
    typer.echo(f"saved in {result['saved_to']}; log and reports in {result['run']}")
