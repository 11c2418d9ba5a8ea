"""The ablation grid in one call, resumable cell by cell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import set_seed

from fedrag.ablations.cell import Cell, Cost, cell_path, forget_peak, memory, questions_hash, read_cell, write_cell
from fedrag.ablations.result import Ablation
from fedrag.errors import ConfigError, InputError
from fedrag.evaluation import Report, evaluate
from fedrag.progress import track
from fedrag.rag import RAGSystem
from fedrag.types import Example

Regime = Callable[[RAGSystem, int], Any]
Measure = Callable[[RAGSystem, int], Mapping[str, Report]]

END_TO_END = "end to end"
"""The setting of the default measure."""


def ablation(
    make: Callable[[int], RAGSystem],
    regimes: Mapping[str, Regime],
    examples: Sequence[Example] = (),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    measure: Measure | None = None,
    baseline: str = "frozen",
    out: str | Path | None = None,
    cluster: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Ablation:
    """Train and measure every regime with every seed; cells that are in `out` already are read, not run again.

    A regime is what is done to an untrained system: nothing, one objective, several in a row. Memory is told per
    process, so regimes are best compared by it when each cell runs in a process of its own: call this with one regime
    and one seed there, and with all of them at the end (`experiments/` does).

    Args:
        make: returns the untrained system of a seed.
        regimes: by name, what trains a system in place, told its seed; a system that it returns is measured instead.
        examples: the questions of the default measure, and part of what a saved cell is recognised by.
        seeds: one system each. All random numbers are seeded before it is made.
        measure: asks a system, told its seed, and returns a report by setting; `None` evaluates `examples` end to end.
        baseline: the regime that the others are compared with.
        out: folder of one file per cell; `None` keeps none.
        cluster: for the default measure, a metadata key whose equal values are resampled together.
        settings: by regime, plain values that decide its result, such as steps and rates. They are kept in the cell's
            file, and a file with others is refused.
        progress: whether to show a bar.

    Raises:
        ConfigError: if a saved cell was made with other settings or questions, or two regimes would share a file.
    """
    files = {cell_path(Path(), regime, 0).name for regime in regimes}
    if len(files) < len(regimes) or not files or not seeds:
        raise ConfigError(
            f"a grid takes at least one seed and one regime, each with a name of its own in letters and digits; "
            f"got the regimes {list(regimes)} and the seeds {list(seeds)}"
        )
    if measure is None:
        if not examples:
            raise InputError("there is nothing to measure: pass examples, or measure= a function of your own")
        measure = _end_to_end(examples, cluster)
    cells: dict[str, dict[int, Cell]] = {regime: {} for regime in regimes}
    common = {"questions": questions_hash(examples), "cluster": cluster}
    with (
        TemporaryDirectory() as aside,
        track(total=len(regimes) * len(seeds), desc="ablation", unit="cell", disable=not progress) as bar,
    ):
        folder = Path(aside if out is None else out)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            for regime, train in regimes.items():
                bar.set_postfix_str(f"{regime}, seed {seed}")
                path = cell_path(folder, regime, seed)
                about = {"regime": regime, "seed": seed, **common, **dict((settings or {}).get(regime, {}))}
                if not path.is_file():
                    reports, cost = _run(make, train, measure, seed)
                    write_cell(path, reports, cost, about)
                cells[regime][seed] = read_cell(path, about)
                bar.update()
    return Ablation(cells, baseline)


def _run(
    make: Callable[[int], RAGSystem], train: Regime, measure: Measure, seed: int
) -> tuple[Mapping[str, Report], Cost]:
    set_seed(seed)  # a cell is the same, whichever ran before it
    system = make(seed)
    forget_peak()
    start, _ = memory()
    wall, cpu = time.perf_counter(), time.process_time()
    trained = train(system, seed)
    cpu_seconds, wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
    _, peak = memory()
    asked = time.process_time()
    reports = measure(trained if isinstance(trained, RAGSystem) else system, seed)
    return reports, Cost(cpu_seconds, wall_seconds, time.process_time() - asked, start, peak)


def _end_to_end(examples: Sequence[Example], cluster: str | None) -> Measure:
    def measure(rag: RAGSystem, seed: int) -> dict[str, Report]:
        return {END_TO_END: evaluate(rag, examples, progress=False, cluster=cluster)}

    return measure
