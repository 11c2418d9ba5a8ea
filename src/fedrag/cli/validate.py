"""`fedrag validate`: all that `train` would find out, before it trains, and what it would cost."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fedrag.cli.train import Changes

if TYPE_CHECKING:
    from fedrag.cli.recipe import Recipe


def validate(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.", show_default=False)],
    changes: Changes = None,
    time_steps: Annotated[bool, typer.Option("--time/--no-time", help="Time a few steps of each stage.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Check a recipe and what it needs, without training.

    Estimates time, memory and disk.
    """
    from fedrag.cli.recipe import read_recipe
    from fedrag.errors import FedRAGError

    result: dict[str, Any] = {"ok": False, "problems": [], "notes": []}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no result
            result = examine(read_recipe(recipe, changes or []), time_steps=time_steps)
    except FedRAGError as error:  # nothing can be looked at beyond it
        result["problems"].append(str(error))
    typer.echo(json.dumps(result) if as_json else _told(result))
    if not result["ok"]:
        raise typer.Exit(1)


def examine(recipe: Recipe, *, time_steps: bool = True) -> dict[str, Any]:
    """What `fedrag validate --json` prints: problems, notes, and the estimate where there is no problem.

    Raises:
        FedRAGError: for what nothing can be checked behind: a file that is not there, a stage that cannot be made.
    """
    from fedrag.cli.building import examples_of, open_base, rehearse, rows_of
    from fedrag.cli.checks import notes_of, problems_of
    from fedrag.cli.estimate import estimate

    sites = examples_of(recipe)
    train = [example for rows in sites.values() for example in rows]
    dev = rows_of(recipe.eval) if recipe.eval else []
    rag = open_base(recipe.system)
    objectives = rehearse(rag, recipe, train)
    problems = problems_of(recipe, rag, objectives, train)
    result: dict[str, Any] = {
        "ok": not problems,
        "problems": problems,
        "notes": notes_of(rag, train, dev),
        "examples": {name: len(rows) for name, rows in sites.items()} | ({"eval": len(dev)} if dev else {}),
        "passages": len(rag.dense.store),
    }
    if time_steps and not problems:
        result["estimate"] = asdict(estimate(recipe, rag, sites, dev))
    return result


def _told(result: Mapping[str, Any]) -> str:
    lines = [f"problem: {problem}" for problem in result["problems"]]
    lines += [f"note: {note}" for note in result["notes"]]
    if "examples" in result:
        counts = ", ".join(f"{count} {name}" for name, count in result["examples"].items())
        lines.append(f"examples: {counts}; passages: {result['passages']}")
    if cost := cast(dict[str, Any] | None, result.get("estimate")):
        for number, stage in enumerate(cost["stages"], start=1):
            lines.append(
                f"stage {number} ({stage['objective']}): {stage['steps']} steps of {stage['seconds_per_step']:.3g} s, "
                f"{_duration(stage['seconds'])} in all"
            )
        lines.append(
            f"about {_duration(cost['seconds'])}, {cost['memory'] / 1e9:.2f} GB of memory, {cost['disk'] / 1e9:.2f} GB "
            "on disk: extrapolated from a few timed steps on this machine"
        )
    lines.append("nothing stands in the way" if result["ok"] else f"{len(result['problems'])} to solve")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
