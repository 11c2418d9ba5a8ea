"""`fedrag push`: a saved system into a repository of a model hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def push(
    system: Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)],
    repository: Annotated[str, typer.Argument(help="Where to, as user/name.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it.")] = False,
    include_store: Annotated[bool, typer.Option("--include-store", help="The documents too.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Push a system to a model hub.

    Its documents stay here by default.

    It is one commit, into a private repository unless --public. The token is the one of
    `hf auth login`, or that in HF_TOKEN.
    """
    from fedrag.bundles import hub

    url = hub.push(system, repository, private=not public, include_store=include_store)
    typer.echo(json.dumps({"repository": repository, "commit": url, "store": include_store}) if json_ else url)
    if not include_store:
        typer.echo("the documents stayed here: whoever loads it passes a store", err=True)
