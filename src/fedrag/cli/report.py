"""`fedrag report`: what a run left, as one HTML page for people to read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrag.errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from fedrag.stores.memory import MemoryStore


def report(
    page: Annotated[Path, typer.Argument(help="The HTML file to write.", show_default=False)],
    run: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, metavar="FOLDER", help="What `fedrag train` left.")
    ] = None,
    after: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Report, as `fedrag evaluate --save` writes it.")
    ] = None,
    before: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Report to compare it with.")] = None,
    more: Annotated[list[str] | None, typer.Option(metavar="NAME=FILE", help="A further report; repeatable.")] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="log.jsonl or trainer_state.json; repeatable."),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="History of a federated run, as JSON.")
    ] = None,
    system: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="FOLDER", help="Saved system with the passages' texts."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What makes right: exact_match, unless it stayed.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="KEY", help="Metadata key: a table by its values.")] = None,
    shown: Annotated[
        int, typer.Option(min=0, metavar="N", show_default=False, help="Flipped questions of each kind: 100.")
    ] = 100,
    title: Annotated[str, typer.Option(show_default=False, help="Title of the page.")] = "Evaluation report",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a run's page: metrics, curves, and what flipped."""
    from fedrag.evaluation import Report
    from fedrag.pages import read_history, read_log, write_page

    if run is not None:
        kept = {name: run / name for name in ("after.json", "before.json", "log.jsonl") if (run / name).is_file()}
        after, before = after or kept.get("after.json"), before or kept.get("before.json")
        log = log or [path for name, path in kept.items() if name == "log.jsonl"]
        tuned = run.absolute().with_suffix("")
        system = system or (tuned if run.suffix == ".run" and tuned.is_dir() else None)
    if after is None:
        where = f"{run} holds no after.json: the run has not ended, or its recipe has no eval" if run else "got none"
        raise ConfigError(f"a page wants a report: {where}; name one by --after")
    about = {"after": after.name, **({"before": before.name} if before else {})}
    about |= _stages(run / "run.json") if run else {}
    others: dict[str, Report] = {}
    for named in more or []:
        name, equals, file = named.partition("=")
        if not (name and equals and Path(file).is_file()):
            raise InputError(f"--more takes name=report.json, the file of a saved report, got {named!r}")
        others[name] = Report.load(file)
        about[name] = Path(file).name
    store = None
    if system is not None:
        store = _store(system)
        about |= {"system": system.name, "documents": f"{len(store):,}", "encoder of the documents": store.fingerprint}
    written = write_page(
        page,
        after=Report.load(after),
        before=Report.load(before) if before else None,
        more=others,
        log=[row for path in log or [] for row in read_log(path)],
        history=read_history(history) if history else None,
        store=store,
        metric=metric,
        by=by,
        shown=shown,
        title=title,
        about=about,
    )
    if json_:
        typer.echo(json.dumps({**asdict(written), "path": str(written.path)}))
        return
    flipped = f"; {written.became_right} became right, {written.became_wrong} wrong" if before else ""
    typer.echo(f"{written.path}: {written.bytes / 1000:,.0f} kB{flipped}")


def _stages(file: Path) -> dict[str, str]:
    """What a run's stages did: their objectives and numbers. Names of files and keys stay where they are."""
    try:
        stages: Any = json.loads(file.read_text(encoding="utf-8"))["recipe"]["stages"] if file.is_file() else []
        return {
            f"stage {place}": ", ".join(
                [stage["objective"]]
                + [
                    f"{name} {value}"
                    for part in ("settings", "training")
                    for name, value in stage[part].items()
                    if isinstance(value, int | float)
                ]
            )
            for place, stage in enumerate(stages, start=1)
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not what fedrag train writes ({type(error).__name__}); train again") from None


def _store(system: Path) -> MemoryStore:
    """The documents of a saved system, without its models."""
    from fedrag.bundles.place import parts_in
    from fedrag.stores.memory import MemoryStore

    folder = parts_in(system) / "store"
    if not folder.is_dir():
        raise InputError(f"{system} holds no documents, for they are in a database; leave --system out to show ids")
    return MemoryStore.open(folder)
