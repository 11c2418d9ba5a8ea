"""`fedrag mine`: hard negatives out of the whole store, into a file of examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedrag.cli.opening import System, open_system


def mine(
    system: System,
    examples: Annotated[Path, typer.Argument(help="Questions with positives.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="File to write, .jsonl.", show_default=False)],
    per_example: Annotated[int, typer.Option(help="Negatives for each example.")] = 1,
    ranks: Annotated[tuple[int, int], typer.Option(help="Look at the END best, leave out the START best.")] = (0, 30),
    draw: Annotated[
        Literal["random", "top"], typer.Option(help="random: any that is admitted; top: the hardest.")
    ] = "random",
    margin: Annotated[float | None, typer.Option(help="Refuse scores closer than this to the positive's.")] = None,
    relative_margin: Annotated[float | None, typer.Option(help="The same, as a share of the positive's score.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Refuse scores above this one.")] = None,
    answer_match: Annotated[bool, typer.Option(help="Refuse passages that hold an answer.")] = True,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Give examples hard negatives.

    Those are passages that the retriever likes and that do not answer the question.
    """
    from fedrag.data import read_examples
    from fedrag.data.writing import write_examples
    from fedrag.objectives.mining import HardNegatives
    from fedrag.objectives.mining import mine as mined

    guards = HardNegatives(
        per_example=per_example,
        ranks=ranks,
        draw=draw,
        margin=margin,
        relative_margin=relative_margin,
        max_score=max_score,
        answer_match=answer_match,
    )
    before = read_examples(examples)
    after = mined(open_system(system), before, guards, seed=seed)
    write_examples(out, after)
    found = [len(new.negatives) - len(old.negatives) for new, old in zip(after, before, strict=True)]
    told = {"examples": len(after), "negatives": sum(found), "without": found.count(0), "file": str(out)}
    typer.echo(
        json.dumps(told)
        if as_json
        else f"{sum(found)} negatives for {len(after)} examples, none for {found.count(0)} of them, in {out}"
    )
