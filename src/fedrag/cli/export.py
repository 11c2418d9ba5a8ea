"""`fedrag export`: a saved system's models as plain folders, for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedrag.cli.opening import loading


class DType(StrEnum):
    """Precision of the generator's weights."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def export(
    system: Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="New folder to write.", show_default=False)],
    dtype: Annotated[DType, typer.Option(help="Precision of the generator's weights.")] = DType.bfloat16,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a system's models, merged, for vLLM and others.

    Neither fedrag nor peft is needed to load them. The encoder and the reranker keep their precision.
    """
    from fedrag.bundles.export import export as write

    with loading(f"the models of {system}"):
        done = write(system, out, dtype=dtype.value)
    if json_:
        typer.echo(json.dumps(asdict(done)))
        return
    typer.echo(f"{out}: {', '.join(done.folders)}, prompt.json")
    if done.difference is not None and done.same is not None:
        typer.echo(
            f"generator in {done.dtype}: logits differ by at most {done.difference:.2g} of {done.largest:.3g} from "
            f"the system's own, the next token is the same at {done.same:.1%} of places"
        )
