"""What every experiment shares: cells in processes of their own, two at a time, and what is published of them.

A script defines plans, each one grid of `fedrag.ablations`, and calls `main`. Each cell, one regime with one seed,
runs as `python experiments/NAME.py --cell PLAN REGIME SEED` on one thread, so that its peak memory is its own; finished
cells are not run again. They know their settings, not the code: after changing that, begin with an empty folder. At the
end the grid is read back and written as Markdown, JSON and a chart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from fedrag.ablations import Ablation, Cell, Column, Cost, ablation
from fedrag.ablations.cell import cell_path
from fedrag.ablations.result import contrast_rows, markdown_table
from fedrag.ablations.run import Measure, Regime
from fedrag.durable import replace_text
from fedrag.evaluation.comparison import table
from fedrag.rag import RAGSystem

REPOSITORY = Path(__file__).resolve().parents[1]
Size = Literal["full", "quick", "tiny"]


@dataclass(frozen=True)
class Plan:
    """One grid: its regimes with the settings that decide their results, and what is shown of it.

    `pairs` are compared with each other in a family of their own, beside every regime with the baseline. `notes` makes
    further Markdown of the finished grid. Plans with the same `page` are published as one grid, whose columns begin
    with each plan's `part`.
    """

    name: str
    title: str
    what: str
    make: Callable[[int], RAGSystem]
    measure: Measure
    regimes: Mapping[str, Regime]
    settings: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Column]
    seeds: Sequence[int]
    compared: Sequence[str] = ()
    baseline: str = "frozen"
    pairs: Sequence[tuple[str, str]] = ()
    notes: Callable[[Ablation], str] | None = field(default=None)
    page: str = ""
    part: str = ""

    def cells(self) -> list[tuple[str, int]]:
        """Every regime of the first seed, then of the next."""
        return [(regime, seed) for seed in self.seeds for regime in self.regimes]

    def run(self, out: Path, regimes: Sequence[str], seeds: Sequence[int]) -> Ablation:
        """Run the cells that are not there yet, in this process, and read all."""
        chosen = {regime: self.regimes[regime] for regime in regimes}
        return ablation(
            self.make,
            chosen,
            seeds=seeds,
            measure=self.measure,
            baseline=self.baseline,
            out=out / self.name,
            settings=self.settings,
            progress=False,
        )


def main(plans: Callable[[Size], Sequence[Plan]], script: str, description: str, *, jobs: int = 2) -> int:
    """The command line of an experiment; `jobs` is how many cells run at a time unless told otherwise."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=("full", "quick", "tiny"), default="full", help="full is the default")
    parser.add_argument("--jobs", type=int, default=jobs, help=f"cells at a time, one thread each (default: {jobs})")
    parser.add_argument("--out", type=Path, help="folder of the cells (default: runs/evidence, or runs/evidence-SIZE)")
    parser.add_argument(
        "--publish",
        type=Path,
        help="folder of the pages (default: docs/evidence for the whole of a full grid, else OUT/pages)",
    )
    parser.add_argument("--only", action="append", metavar="REGIME", help="these regimes only (may be repeated)")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds only")
    parser.add_argument("--cell", nargs=3, metavar=("PLAN", "REGIME", "SEED"), help="run one cell in this process")
    args = parser.parse_args()
    out: Path = args.out or REPOSITORY / "runs" / ("evidence" if args.size == "full" else f"evidence-{args.size}")
    made = [narrowed(plan, args.only, args.seeds) for plan in plans(args.size)]
    made = [plan for plan in made if plan.regimes]
    if not made:
        parser.error(f"no plan has the regimes {args.only}; there are: {[*plans(args.size)[0].regimes]}")
    if args.cell:
        quiet()
        name, regime, seed = args.cell
        (plan,) = (plan for plan in made if plan.name == name)
        plan.run(out, [regime], [int(seed)])
        return 0
    failed = run_cells(made, script, args.size, out, args.jobs)
    if failed:
        print("\n".join(["these cells failed, and their logs tell why:", *failed]), file=sys.stderr)
        return 1
    whole = args.size == "full" and not args.only and not args.seeds
    pages = args.publish or (REPOSITORY / "docs" / "evidence" if whole else out / "pages")
    for page in dict.fromkeys(plan.page or plan.name for plan in made):
        parts = [plan for plan in made if (plan.page or plan.name) == page]
        found = [plan.run(out, list(plan.regimes), plan.seeds) for plan in parts]
        print(publish(*(together(parts, found) if parts[0].page else (parts[0], found[0])), args.size, pages))
    return 0


def together(plans: Sequence[Plan], grids: Sequence[Ablation]) -> tuple[Plan, Ablation]:
    """Several grids of the same regimes as one: settings and columns begin with their part's name, costs add up."""
    cells: dict[str, dict[int, Cell]] = {regime: {} for regime in plans[0].regimes}
    for regime, seeds in cells.items():
        for seed in plans[0].seeds:
            each = [found.cells[regime][seed] for found in grids]
            costs = [asdict(cell.cost) for cell in each]
            cost = {name: sum(one[name] for one in costs) for name in costs[0]}
            cost |= {name: max(one[name] for one in costs) for name in ("start_gib", "peak_gib")}
            named = [(plan.part, cell.records) for plan, cell in zip(plans, each, strict=True)]
            seeds[seed] = Cell(
                {f"{part}: {s}": rows for part, records in named for s, rows in records.items()}, Cost(**cost)
            )
    columns = {f"{p.part}: {head}": (f"{p.part}: {c[0]}", c[1]) for p in plans for head, c in p.columns.items()}
    compared = [f"{plan.part}: {heading}" for plan in plans for heading in plan.compared]
    return replace(plans[0], name=plans[0].page, columns=columns, compared=compared), Ablation(cells, plans[0].baseline)


def narrowed(plan: Plan, regimes: Sequence[str] | None, seeds: Sequence[int] | None) -> Plan:
    kept = {name: regime for name, regime in plan.regimes.items() if not regimes or name in regimes}
    pairs = [pair for pair in plan.pairs if set(pair) <= set(kept)]
    notes = None if len(kept) < len(plan.regimes) else plan.notes
    return replace(plan, regimes=kept, pairs=pairs, seeds=seeds or plan.seeds, notes=notes)


def run_cells(plans: Sequence[Plan], script: str, size: Size, out: Path, jobs: int) -> list[str]:
    """Run each missing cell in a process of its own; return the logs of those that failed."""
    missing: list[tuple[Plan, str, int]] = []
    for plan in plans:
        for regime, seed in plan.cells():
            if cell_path(out / plan.name, regime, seed).is_file():
                plan.run(out, [regime], [seed])  # only reads: refuses a cell of other settings before hours of others
            else:
                missing.append((plan, regime, seed))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}

    def run(cell: tuple[Plan, str, int]) -> str | None:
        plan, regime, seed = cell
        log = cell_path(out / plan.name / "logs", regime, seed).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, script, "--size", size, "--out", str(out), "--cell", plan.name, regime, str(seed)]
        with log.open("w") as stream:
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        return str(log) if done.returncode else None

    total = sum(len(plan.cells()) for plan in plans)
    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=total, initial=total - len(missing), desc=Path(script).stem, unit="cell") as bar,
    ):
        failed: list[str] = []
        for done in as_completed([pool.submit(run, cell) for cell in missing]):
            failed += [log] if (log := done.result()) else []
            bar.update()
    return failed


def publish(plan: Plan, grid: Ablation, size: Size, folder: Path) -> str:
    """Write the tables as Markdown, all figures as JSON and a chart; return the tables as text."""
    grid = replace(grid, columns=plan.columns, compared=plan.compared)
    folder.mkdir(parents=True, exist_ok=True)
    tables = grid.tables()
    contrasts = grid.compare(plan.pairs) if plan.pairs else []
    if contrasts:
        headings = {column: heading for heading, column in plan.columns.items()}
        tables["with each other, paired"] = contrast_rows(contrasts, headings)
    content = grid.content() | {
        "title": plan.title,
        "size": size,
        "settings": {regime: dict(plan.settings.get(regime, {})) for regime in plan.regimes},
        "pairs": [asdict(row) for row in contrasts],
        "versions": {name: version(name) for name in ("fedrag", "torch", "transformers", "sentence-transformers")}
        | {"python": platform.python_version()},
    }
    chart(plan, grid, content, folder / f"{plan.name}.svg")
    questions = max(row["n"] for regime in content["regimes"].values() for row in regime["metrics"].values())
    lines = [
        f"# {plan.title}",
        "",
        plan.what,
        "",
        f"{len(plan.seeds)} seeds, {questions:,} answers (questions times seeds); intervals and tests resample "
        "clusters of questions; "
        f"p-values are adjusted by Holm over each table of differences. One thread per cell. "
        f"Every figure, and every setting: [{plan.name}.json]({plan.name}.json).",
        "",
        f"![{plan.title}]({plan.name}.svg)",
        "",
    ]
    for title, rows in tables.items():
        lines += [f"## {title[0].upper()}{title[1:]}", "", markdown_table(rows)]
    if plan.notes:
        lines += [plan.notes(grid)]
    text = "\n".join(lines).rstrip() + "\n"
    replace_text(folder / f"{plan.name}.json", json.dumps(content, indent=1) + "\n")
    replace_text(folder / f"{plan.name}.md", text)
    return f"{plan.title}\n\n" + "\n\n".join(f"{title}\n{table(rows)}" for title, rows in tables.items()) + "\n"


def chart(plan: Plan, grid: Ablation, content: Mapping[str, Any], path: Path) -> None:
    """Draw the compared columns with intervals and a dot per seed, and what the first one cost."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": plan.name, "font.size": 9}
    import matplotlib.pyplot as plt

    regimes: Mapping[str, Any] = content["regimes"]
    shown = list(plan.compared or plan.columns)[:4]
    height = 1.2 + 0.32 * len(regimes)
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(3.2 * (len(shown) + 1), height), layout="constrained")
    places = {regime: -number for number, regime in enumerate(regimes)}
    for axis, heading in zip(axes, shown, strict=False):
        for regime, row in regimes.items():
            if metric := row["metrics"].get(heading):
                colour = "tab:gray" if regime.startswith("control") or regime == plan.baseline else "tab:blue"
                around = [[metric["mean"] - metric["low"]], [metric["high"] - metric["mean"]]]
                axis.barh(places[regime], metric["mean"], xerr=around, color=colour, alpha=0.6, height=0.7)
                dots = list(metric["by_seed"].values())
                axis.plot(dots, [places[regime]] * len(dots), ".", color="black", markersize=3)
        axis.set_title(heading, fontsize=9)
        axis.set_yticks(list(places.values()), list(places) if axis is axes[0] else [""] * len(places))
        axis.set_xlim(left=0)
    last = axes[-1]
    for regime, row in regimes.items():
        if metric := row["metrics"].get(shown[0]):
            minutes = row["cost"]["cpu_seconds"] / 60
            last.plot(minutes, metric["mean"], "o", color="tab:blue", markersize=4)
            last.annotate(regime, (minutes, metric["mean"]), fontsize=6, xytext=(3, 2), textcoords="offset points")
    last.margins(x=0.35)
    last.set_xlabel("CPU minutes of training")
    last.set_title(f"{shown[0]} for its cost", fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def quiet() -> None:
    """What other libraries say of themselves does not belong into a cell's log; one thread, as `main` promises."""
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
