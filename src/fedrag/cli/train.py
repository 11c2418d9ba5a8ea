"""`fedrag train`: tune a system as a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrag.errors import ConfigError


def train(
    recipe: Annotated[
        Path, typer.Argument(help="YAML recipe; `fedrag train --example` prints one.", show_default=False)
    ] = Path(),
    example: Annotated[bool, typer.Option("--example", help="Print an example recipe and stop.")] = False,
) -> None:
    """Tune a system as a recipe says, and save the tuned one beside it."""
    from fedrag.cli import recipe as recipes

    if example:
        typer.echo((recipes.__doc__ or "").split("```")[1].removeprefix("yaml\n"), nl=False)
        return
    if recipe == Path():
        raise ConfigError("name a recipe: fedrag train recipe.yaml; `fedrag train --example` prints one")
    from fedrag.cli.run import run_recipe

    run_recipe(recipes.read_recipe(recipe))
