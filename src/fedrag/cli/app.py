"""The commands. Each imports what it needs when it runs, so that `fedrag --help` is quick."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrag import durable
from fedrag.cli import federate
from fedrag.cli.opening import loading, open_system
from fedrag.cli.serve import serve
from fedrag.errors import ConfigError

if TYPE_CHECKING:
    from fedrag.rag import RAGSystem
    from fedrag.types import Document

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune a retrieval-augmented generation system, and measure what it gained.",
)

app.add_typer(federate.app, name="federate")
app.command()(serve)

System = Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)]
_SAVE_EVERY = 60.0  # seconds of indexing between two saves


@app.command()
def index(
    documents: Annotated[Path, typer.Argument(help="Folder of txt/md; or jsonl, csv, parquet.", show_default=False)],
    system: Annotated[Path, typer.Argument(help="Folder to write, or to add to.", show_default=False)],
    encoder: Annotated[str | None, typer.Option(help="Name or folder; new: all-MiniLM-L6-v2.")] = None,
    generator: Annotated[str | None, typer.Option(help="Name or folder; new: Qwen/Qwen3-0.6B.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of adapters, 0: none; new: 16.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Documents in a prompt; new: 5.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens in a passage; 0: no cut.")] = 200,
    overlap: Annotated[int, typer.Option(help="Tokens that passages share.")] = 20,
) -> None:
    """Build a system from documents, or add documents to one. Interrupted, it goes on where it stopped."""
    from fedrag.data import read_documents

    known = durable.exists(system)
    given = {"--encoder": encoder, "--generator": generator, "--lora": lora, "--top-k": top_k}
    if known and (set_ := [name for name, value in given.items() if value is not None]):
        raise ConfigError(
            f"{system} is a system already, which {' and '.join(set_)} cannot change: leave that out to add documents "
            "to it, or name another folder to build a new one"
        )
    chunks = read_documents(documents, chunk_tokens=chunk_tokens or None, overlap=overlap if chunk_tokens else 0)
    if known:
        rag = open_system(system)
    else:
        rag = _build(
            "all-MiniLM-L6-v2" if encoder is None else encoder,
            "Qwen/Qwen3-0.6B" if generator is None else generator,
            16 if lora is None else lora,
            5 if top_k is None else top_k,
        )
    removed = _index(rag, chunks, system)
    gone = f"; {removed} removed, which their source no longer has" if removed else ""
    typer.echo(f"{len(rag.dense.store)} passages in {system}{gone}")


@app.command()
def ask(
    system: System,
    question: Annotated[str, typer.Argument(show_default=False)],
    k: Annotated[int | None, typer.Option(help="Documents in the prompt; the system's own setting by default.")] = None,
    sources: Annotated[bool, typer.Option(help="List the documents that the answer was made from.")] = True,
) -> None:
    """Ask a system a question; the answer appears as it is written."""
    answer = open_system(system).stream(question, k=k)
    for piece in answer:
        typer.echo(piece, nl=False)
    typer.echo()
    if sources:
        for place, hit in enumerate(answer.hits, start=1):
            text = " ".join(hit.document.text.split())
            typer.echo(f"  [{place}] {hit.score:.3f}  {hit.document.id}  {text[:80]}")


@app.command()
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


@app.command()
def evaluate(
    system: System,
    examples: Annotated[Path, typer.Argument(help="Questions with answers or positives.", show_default=False)],
    k: Annotated[int | None, typer.Option(help="Documents in the prompt; the system's own setting by default.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report, every answer with it, as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier report: differences, intervals, p-values.")] = None,
) -> None:
    """Measure a system: every number with n and a 95 % interval."""
    from fedrag.data import read_examples
    from fedrag.evaluation import Report
    from fedrag.evaluation import evaluate as measure

    report = measure(open_system(system), read_examples(examples), k=k)
    typer.echo(str(report))
    if save:
        report.save(save)
    if compare:
        typer.echo(str(report.compare(Report.load(compare))))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the report and the tuned system.")] = Path("runs/quickstart"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and sooner: a check that all works.")] = False,
    encoder: Annotated[str | None, typer.Option(help="Tune this encoder (name or folder) on the real text.")] = None,
    controls: Annotated[bool, typer.Option("--controls", help="Train control regimes too; twice the time.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs with different seeds; the table shows their mean.")] = 1,
) -> None:
    """Tune a retriever on real text and a whole RAG system on an invented world; show before and after."""
    from fedrag.quickstart.run import run

    run(out, quick=quick, seeds=seeds, encoder=encoder, controls=controls)


def _build(encoder: str, generator: str, lora: int, top_k: int) -> RAGSystem:
    from fedrag.encoders.sentence import SentenceEncoder
    from fedrag.generators.causal import CausalLM
    from fedrag.rag import RAGSystem
    from fedrag.retrievers.dense import DenseRetriever
    from fedrag.stores.memory import MemoryStore

    with loading(f"the encoder {encoder!r}"):
        towers = SentenceEncoder(encoder)
    with loading(f"the generator {generator!r}"):
        reader = CausalLM(generator, lora=lora or None)
    return RAGSystem(retriever=DenseRetriever(towers, MemoryStore()), generator=reader, top_k=top_k)


def _index(rag: RAGSystem, documents: list[Document], system: Path) -> int:
    """Add documents, saving now and then; an interruption saves what is there and says how to go on.

    Return how many passages were removed because their text was read again and has them no more.
    """
    from tqdm.auto import tqdm

    size = 16 * rag.dense.batch_size
    saved = time.monotonic()
    try:
        for start in tqdm(range(0, len(documents), size), desc="index", unit=f"x{size}"):
            rag.add(documents[start : start + size], progress=False)
            if time.monotonic() - saved > _SAVE_EVERY:
                rag.save(system)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if len(rag.dense.store):
            rag.save(system)
        typer.echo(
            f"\nstopped: {len(rag.dense.store)} passages are saved; the same command goes on from there", err=True
        )
        raise typer.Exit(130) from None
    produced = {document.id for document in documents}
    again = {_origin(document) for document in documents}
    store = rag.dense.store
    outdated = [d.id for d in store.documents() if d.id not in produced and _origin(d) in again]
    removed = store.remove(outdated)
    rag.save(system)
    return removed


def _origin(document: Document) -> str:
    """The id of the text that a passage was cut from; of a passage that is a whole row, its own."""
    whole, _, place = document.id.rpartition("#")
    is_piece = {"start", "end"} <= document.metadata.keys() or document.metadata.get("source") == whole
    return whole if is_piece and place.isdecimal() else document.id
