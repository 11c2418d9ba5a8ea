"""`fedrag questions`: examples for a corpus that has none, written by its own generator and checked by retrieval."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedrag.cli.opening import System, loading, open_system
from fedrag.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fedrag.synthesis import Draft


def questions(
    system: System,
    out: Annotated[Path, typer.Argument(help="File to write, .jsonl.", show_default=False)],
    n: Annotated[int, typer.Option("--n", min=1, help="Questions to keep.")] = 1000,
    test: Annotated[float, typer.Option(min=0, max=0.9, help="Share to hold out, in OUT.test.jsonl.")] = 0.2,
    within: Annotated[int, typer.Option(min=1, help="The passage must be found again among so many.")] = 3,
    judge: Annotated[
        Literal["bm25", "own"], typer.Option(help="Who looks for it: bm25, or the system's own retriever.")
    ] = "bm25",
    answers: Annotated[bool, typer.Option(help="Answer each question from its passage too.")] = True,
    writer: Annotated[str | None, typer.Option(help="Another generator to write them: name or folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the passages and of the split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write questions about a system's passages, and check them.

    Kept are those for which retrieval finds the passage again; some are held out.

    Interrupted, the same command goes on where it stopped.
    """
    from fedrag.data import split
    from fedrag.data.writing import write_examples
    from fedrag.generators.causal import CausalLM
    from fedrag.progress import track
    from fedrag.retrievers.lexical import LexicalRetriever
    from fedrag.synthesis import Generated, drafts

    if out.suffix.lower() != ".jsonl":
        raise ConfigError(f"{out}: examples are written as JSON lines; give the file a name that ends with .jsonl")
    rag = open_system(system)
    settings = {"system": str(system), "within": within, "judge": judge, "answers": answers, "seed": seed}
    settings |= {"writer": writer, "documents": len(rag.dense.store)}
    part = out.with_suffix(".part.jsonl")
    done = _resumed(part, settings)
    author = None
    if writer:
        with loading(f"the generator {writer!r}"):
            author = CausalLM(writer)
    finder = LexicalRetriever(list(rag.dense.store.documents())) if judge == "bm25" else None
    made = list(done)
    told = drafts(rag, answers=answers, within=within, judge=finder, writer=author, seed=seed, done=done)
    kept = sum(not draft.refused for draft in done)
    try:
        with (
            part.open("a", encoding="utf-8") as file,
            track(total=n, desc="questions", unit="kept", initial=kept) as bar,
        ):
            while kept < n and (draft := next(told, None)) is not None:
                file.write(json.dumps(asdict(draft)) + "\n")
                file.flush()
                made.append(draft)
                kept += not draft.refused
                bar.update(not draft.refused)
    except KeyboardInterrupt:
        typer.echo(f"\nstopped: {len(made)} drafts are in {part}; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    result = Generated.of(made[: _enough(made, n)])
    files = {out: result.examples}
    if test and result.examples:
        parts = split(result.examples, {"train": 1 - test, "test": test}, by="document", seed=seed)
        files = {out: parts["train"], out.with_suffix(".test.jsonl"): parts["test"]}
    for path, some in files.items():
        write_examples(path, some)
    part.unlink()
    if as_json:
        counts = {str(path): len(some) for path, some in files.items()}
        typer.echo(json.dumps({"kept": len(result.examples), "refused": dict(result.refused), "files": counts}))
    else:
        typer.echo(str(result))
        for path, some in files.items():
            typer.echo(f"{len(some)} in {path}")


def _enough(made: list[Draft], n: int) -> int:
    """How many drafts it takes to have n that are kept."""
    kept = 0
    for place, draft in enumerate(made):
        kept += not draft.refused
        if kept == n:
            return place + 1
    return len(made)


def _resumed(part: Path, settings: dict[str, Any]) -> list[Draft]:
    """The drafts of an earlier run with these settings; a line that it was killed in is taken off."""
    from pydantic import TypeAdapter

    from fedrag.synthesis import Draft

    part.parent.mkdir(parents=True, exist_ok=True)
    if not part.exists() or not (lines := part.read_text(encoding="utf-8").splitlines(keepends=True)):
        part.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    if not lines[-1].endswith("\n"):
        lines.pop()
        part.write_text("".join(lines), encoding="utf-8")
    try:
        before, *rows = map(json.loads, lines)
        done = TypeAdapter(list[Draft]).validate_python(rows)
    except ValueError:  # of JSON, and of pydantic
        raise DataError(
            f"{part} is not what an earlier run of this command left: move it away and start again"
        ) from None
    if before != settings:
        raise ConfigError(
            f"{part} was begun with {before}, and this run has {settings}: give the same settings to go on with it, or "
            "remove it to start again"
        )
    return done
