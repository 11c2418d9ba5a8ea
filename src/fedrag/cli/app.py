"""The commands. Each imports what it needs when it runs, so that `fedrag --help` is quick."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrag import durable
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

System = Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)]
_SAVE_EVERY = 60.0  # seconds of indexing between two saves


@app.command()
def index(
    documents: Annotated[Path, typer.Argument(help="Folder of txt/md; or jsonl, csv, parquet.", show_default=False)],
    system: Annotated[Path, typer.Argument(help="Folder to write, or to add to.", show_default=False)],
    encoder: Annotated[str, typer.Option(help="Name or folder of the encoder.")] = "all-MiniLM-L6-v2",
    generator: Annotated[str, typer.Option(help="Name or folder of the LLM.")] = "Qwen/Qwen3-0.6B",
    lora: Annotated[int, typer.Option(help="Rank of LoRA adapters; 0: none.")] = 16,
    top_k: Annotated[int, typer.Option(help="Documents in a prompt.")] = 5,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens in a passage; 0: no cut.")] = 200,
    overlap: Annotated[int, typer.Option(help="Tokens that passages share.")] = 20,
) -> None:
    """Build a system from documents, or add documents to one. Interrupted, it goes on where it stopped."""
    from fedrag.data import read_documents

    chunks = read_documents(documents, chunk_tokens=chunk_tokens or None, overlap=overlap if chunk_tokens else 0)
    rag = _open(system) if durable.exists(system) else _build(encoder, generator, lora, top_k)
    _index(rag, chunks, system)
    typer.echo(f"{len(rag.dense.store)} passages in {system}")


@app.command()
def ask(
    system: System,
    question: Annotated[str, typer.Argument(show_default=False)],
    k: Annotated[int | None, typer.Option(help="Documents in the prompt; the system's own setting by default.")] = None,
    sources: Annotated[bool, typer.Option(help="List the documents that the answer was made from.")] = True,
) -> None:
    """Ask a system a question; the answer appears as it is written."""
    answer = _open(system).stream(question, k=k)
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

    report = measure(_open(system), read_examples(examples), k=k)
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


def _open(system: Path) -> RAGSystem:
    from fedrag.rag import RAGSystem

    return RAGSystem.load(system)


def _build(encoder: str, generator: str, lora: int, top_k: int) -> RAGSystem:
    from fedrag.encoders.sentence import SentenceEncoder
    from fedrag.generators.causal import CausalLM
    from fedrag.rag import RAGSystem
    from fedrag.retrievers.dense import DenseRetriever
    from fedrag.stores.memory import MemoryStore

    retriever = DenseRetriever(SentenceEncoder(encoder), MemoryStore())
    return RAGSystem(retriever=retriever, generator=CausalLM(generator, lora=lora or None), top_k=top_k)


def _index(rag: RAGSystem, documents: list[Document], system: Path) -> None:
    """Add documents, saving now and then; an interruption saves what is there and says how to go on."""
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
    rag.save(system)
