"""The quickstart: three acts, one report. See `fedrag quickstart --help`."""

from __future__ import annotations

import json
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from fedrag.durable import replace_text
from fedrag.evaluation import Report, summarize
from fedrag.quickstart import loop, retrieval, tables
from fedrag.quickstart.tables import Reports
from fedrag.quickstart.world import make_world
from fedrag.rag import RAGSystem

if TYPE_CHECKING:
    from fedrag.federated.history import History


def run(
    out: Path, *, quick: bool = False, seeds: int = 1, encoder: str | None = None, controls: bool = False
) -> dict[str, Any]:
    """Run all acts for each seed, print the tables, write `report.json` into `out`; return its content.

    Args:
        out: folder of the report.
        quick: fewer steps and questions: shows that everything works, not what it can do.
        seeds: runs; the figures pool their questions.
        controls: train the control regimes as well, which doubles the time.
        encoder: a sentence-transformers name or folder to tune in act A in place of the one made from scratch.

    Act C wants the extra `federated`, and is left out, with a word about it, where that is not installed.
    """
    started = time.time()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft's, not the reader's concern
    real: list[Reports] = []
    invented: list[Reports] = []
    federated: list[Reports] = []
    histories: list[History] = []
    tuned: list[RAGSystem] = []
    seconds = {"act A": 0.0, "act B": 0.0, "act C": 0.0}
    tqdm.write("Act A. Real text: find the documentation that a summary sentence belongs to.")
    text = retrieval.collect(quick=quick)
    for seed in range(seeds):
        began = time.time()
        real.append(retrieval.run_regimes(text, seed, quick=quick, encoder=encoder, announce=_announce))
        seconds["act A"] += time.time() - began
    tqdm.write(
        "Act B. An invented world (synthetic): retrieve, read, answer; a tiny language model (0.65 million weights)."
    )
    for seed in range(seeds):
        began = time.time()
        world = make_world(seed, train=20, dev=2, test=6) if quick else make_world(seed)
        steps = loop.Steps(ralt=30, lsr=20) if quick else loop.Steps()
        reports, system = loop.run_regimes(world, seed, steps, world.test, _announce, controls=controls)
        invented.append(reports)
        tuned.append(system)
        seconds["act B"] += time.time() - began
    if find_spec("flwr") is None:
        tqdm.write("Act C, a federation, is left out: pip install 'fedrag[federated]' brings what it needs.")
    else:
        from fedrag.quickstart import federation

        tqdm.write("Act C. Federated: every package a site that keeps its documentation to itself.")
        for seed in range(seeds):
            began = time.time()
            reports, history = federation.run_regimes(text, seed, quick=quick, announce=_announce)
            federated.append(reports)
            histories.append(history)
            seconds["act C"] += time.time() - began
    pooled = {"act A": _pool(real, "module"), "act B": _pool(invented, "entity")}
    if federated:
        pooled["act C"] = _pool(federated, "module")
    content = tables.content(pooled, histories, quick=quick, seeds=seeds)
    content["seconds"] = {
        **{act: round(taken, 1) for act, taken in seconds.items() if taken},
        "all": round(time.time() - started, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    tuned[-1].save(out / "system")
    replace_text(out / "report.json", json.dumps(content, indent=1) + "\n")
    print(tables.text(pooled, content))
    print(tables.asked(invented[-1]))
    threads = torch.get_num_threads()
    print(f"\n{content['seconds']['all']:.0f} s on {threads} threads; every figure: {out / 'report.json'}")
    print(f'the tuned system answers, too: fedrag ask {out / "system"} "{tables.question(invented[-1])}"')
    return content


def _announce(regime: str) -> None:
    tqdm.write(f"  {regime}")


def _pool(runs: Sequence[Reports], cluster: str) -> dict[str, dict[str, Report]]:
    """The seeds' records together: intervals over questions and seeds, what belongs together resampled together."""
    records: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for reports in runs:
        for regime, settings in reports.items():
            for setting, report in settings.items():
                records[regime, setting] += report.records
    pooled: dict[str, dict[str, Report]] = defaultdict(dict)
    for (regime, setting), rows in records.items():
        pooled[regime][setting] = summarize(rows, cluster=cluster)
    return dict(pooled)
