"""Carry out a recipe: open the system, measure, train stage by stage, measure again, save.

What is done is kept in the run's folder (see `fedrag.cli.runs`), so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from transformers import PrinterCallback, ProgressCallback

from fedrag.cli.building import examples_of, open_base, rehearse, rows_of, stage_folder_of, trainer
from fedrag.cli.recipe import Federation, Recipe
from fedrag.cli.runs import Run
from fedrag.cli.watching import Watch
from fedrag.errors import ConfigError
from fedrag.evaluation import Report, evaluate, evaluate_retriever
from fedrag.rag import RAGSystem
from fedrag.training.trainer import RAGTrainer
from fedrag.types import Example

if TYPE_CHECKING:
    from fedrag.federated import Federated, Plan, Site


def run_recipe(recipe: Recipe, *, resume: bool = False) -> dict[str, Any]:
    """Tune as the recipe says; return what came of it, as plain values.

    Args:
        recipe: what to do.
        resume: go on with an interrupted run of the same recipe; one that ended is told again.

    Raises:
        ConfigError: before anything is trained, where a stage cannot work; and under torchrun.
        KeyboardInterrupt: after a Ctrl-C; what is done is kept.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "fedrag train is one process, and torchrun started several: for several GPUs call RAGTrainer in a script "
            "of your own, started by torchrun"
        )
    sites = examples_of(recipe)
    train = [example for rows in sites.values() for example in rows]
    dev = rows_of(recipe.eval) if recipe.eval else []
    run = Run(recipe, resume=resume)
    done = run.done()
    last = len(recipe.stages)
    rag = open_base(recipe.save_to if done == last else run.system(done) if done else recipe.system)
    if done < last:
        rehearse(rag, recipe, train)
    if dev and done == 0:
        _report(run, "before", rag, dev)
    for number in range(done + 1, last + 1):
        typer.echo(f"stage {number} of {last}: {recipe.stages[number - 1].objective}", err=True)
        began = time.monotonic()
        metrics = _centralized(rag, run, number, train, dev) if recipe.federated is None else (
            _federated(rag, run, number, recipe.federated, sites, dev)
        )  # fmt: skip
        run.end_stage(number, {"seconds": round(time.monotonic() - began, 3), **metrics}, rag)
    if dev:
        _report(run, "after", rag, dev)
    run.end()
    return _result(run)


def _centralized(
    rag: RAGSystem, run: Run, number: int, train: Sequence[Example], dev: Sequence[Example]
) -> Mapping[str, float]:
    watch = Watch(run, number)
    made = trainer(rag, run.recipe, number, train, dev, callbacks=[watch])
    _quiet(made)
    checkpoint = run.checkpoint(number)
    run.forget_after(number, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
    with watch.listening():
        output = made.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), final=False)
    if watch.stopped:
        raise KeyboardInterrupt
    made.refresh_index()
    return output.metrics


def _federated(
    rag: RAGSystem,
    run: Run,
    number: int,
    federation: Federation,
    sites: Mapping[str, Sequence[Example]],
    dev: Sequence[Example],
) -> Mapping[str, float]:
    """One trainer a site over one system: each loads the state that it gets before it trains."""
    from fedrag.federated import FederatedTask, Site

    made: dict[str, RAGTrainer] = {}

    def build(site: Site) -> RAGTrainer:
        built = made[site.name] = trainer(rag, run.recipe, number, sites[site.name], dev, disable_tqdm=True)
        _quiet(built)
        return built

    task = FederatedTask(build, _plan(federation, run, number))
    result: Federated = task.run([Site(name) for name in sites], resume=True, callbacks=[Watch(run, number)])
    result.load_into(next(iter(made.values())) if made else build(Site(next(iter(sites)))))
    trained = [done for done in result.history.rounds if done.number < federation.rounds]
    return {"rounds": len(trained), **(dict(trained[-1].metrics) if trained else {})}


def _plan(federation: Federation, run: Run, number: int) -> Plan:
    from fedrag.federated import Averaging, ExactLoRA, Plan

    settings = federation.model_dump(exclude={"shards", "sites", "strategy"})
    strategy = ExactLoRA() if federation.strategy == "exact-lora" else Averaging()
    return Plan(**settings, strategy=strategy, checkpoint=stage_folder_of(run.recipe, number) / "rounds")


def _quiet(made: RAGTrainer) -> None:
    """Take away what prints to stdout, where results go."""
    made.remove_callback(ProgressCallback)
    made.remove_callback(PrinterCallback)


def _report(run: Run, name: str, rag: RAGSystem, dev: Sequence[Example]) -> None:
    """Measure, once in a run."""
    if run.report(name) is None:
        answers = rag.generator is not None and any(example.answers for example in dev)
        report = evaluate(rag, dev) if answers else evaluate_retriever(rag.retriever, dev)
        report.save(run.folder / f"{name}.json")


def _result(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    result: dict[str, Any] = {
        "saved_to": str(recipe.save_to),
        "run": str(run.folder),
        "stages": [
            {"objective": stage.objective, **run.metrics(number)} for number, stage in enumerate(recipe.stages, start=1)
        ],
    }
    before, after = run.report("before"), run.report("after")
    for name, report in (("before", before), ("after", after)):
        if report is not None:
            result[name] = {metric: asdict(value) for metric, value in report.metrics.items()}
    if before is not None and after is not None:
        compared = after.compare(before)
        result["differences"] = {metric: asdict(value) for metric, value in compared.differences.items()}
    return result


def comparison(result: Mapping[str, Any]) -> str | None:
    """The table of before and after, where there are examples to measure on."""
    if "differences" not in result:
        return None
    before, after = (Report.load(f"{result['run']}/{name}.json") for name in ("before", "after"))
    return str(after.compare(before))
