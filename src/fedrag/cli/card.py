"""`fedrag card`: the card of a saved system, and an evaluation into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from fedrag import durable
from fedrag.errors import ConfigError, StoreError

_PLACES = ("system", "save_to", "train", "eval")  # paths of this machine, which nobody else has


def card(
    system: Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)],
    report: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Report to put in.")] = None,
    before: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Report before tuning: differences too.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Recipe that it was tuned by.")
    ] = None,
    method: Annotated[str, typer.Option(help="How it was tuned, in your words.")] = "",
) -> None:
    """Print a system's card, or put an evaluation into it.

    Reports are what `fedrag evaluate --save` writes.
    """
    from fedrag.bundles.page import measured
    from fedrag.bundles.place import parts_in
    from fedrag.evaluation import Report

    path = parts_in(system) / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise StoreError(f"{path} is missing or damaged: save the system again to get a card") from None
    if report is None and (before or recipe or method):
        raise ConfigError("--before, --recipe and --method go with --report: name the report of this system")
    if report is not None:
        found = Report.load(report)
        changes = found.compare(Report.load(before)).differences if before else None
        told = "\n\n".join(filter(None, [method, _recipe(recipe) if recipe else ""]))
        text = measured(text, found.metrics, changes=changes, method=told, name=system.resolve().name)
        durable.replace_text(path, text)
    typer.echo(text, nl=False)


def _recipe(path: Path) -> str:
    """The recipe as a block of YAML, without the places of its files."""
    try:
        saved: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, dict):
        raise ConfigError(f"{path} is no recipe: it must be a YAML mapping; `fedrag train --example` prints one")
    kept = {key: value for key, value in saved.items() if key not in _PLACES}
    return f"```yaml\n{yaml.safe_dump(kept, sort_keys=False)}```"
