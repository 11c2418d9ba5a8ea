"""`fedrag init`: a commented recipe to begin with. The cases are package data, `fedrag/cli/recipes/*.yaml`.

>>> sorted(cases())
['federated', 'joint', 'ra-dit', 'reader', 'retriever']
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from fedrag import durable
from fedrag.errors import ConfigError


def init(
    case: Annotated[str, typer.Argument(help="See --list.")] = "ra-dit",
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    show: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented recipe, to edit, check and run."""
    known = cases()
    if show:
        for name, text in sorted(known.items()):
            typer.echo(f"{name:<10}  {text.splitlines()[1].removeprefix('# ')}")
        return
    if case not in known:
        raise ConfigError(f"there is no case {case!r}; the cases are {', '.join(sorted(known))}")
    if file.exists() and not force:
        raise ConfigError(f"{file} is there already: name another file, or overwrite it with --force")
    try:
        durable.replace_text(file, known[case].replace("THIS", str(file)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{str(file)!r} cannot be written ({reason}): name a file in a folder that is there"
        ) from None
    typer.echo(f"{file}; check it with: fedrag validate {file}")


def cases() -> dict[str, str]:
    """The text of every recipe, by its case."""
    files = resources.files("fedrag.cli").joinpath("recipes").iterdir()
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".yaml")
    }
