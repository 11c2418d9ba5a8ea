"""Federated against centralized and against every site alone, for a retriever and for a reader.

Retriever: every package of the installed documentation is a site, contrastive tuning; the encoder's vocabulary is made
from the standard library's text, which is no site. Reader: every domain of the invented world is a site with a store of
its own passages, RALT with adapters (LoRA, rank 16); "mixed sites" have a third of every domain each. All regimes take
the same number of optimiser steps per site, federated ones in rounds, and are asked the questions of all sites.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from tempfile import TemporaryDirectory

import grid
import numpy as np
import real_text
import world
from grid import Plan, Size

from fedrag.ablations import Ablation
from fedrag.ablations.cell import CLUSTER
from fedrag.ablations.result import markdown_table
from fedrag.evaluation import Report
from fedrag.evaluation.statistics import ratio_interval
from fedrag.federated import Averaging, ExactLoRA, FederatedTask, Site
from fedrag.federated import Plan as Federation
from fedrag.federated.strategies.strategy import Strategy
from fedrag.objectives.ralt import RALT
from fedrag.quickstart import federation, loop
from fedrag.quickstart.documentation import PACKAGES
from fedrag.quickstart.federation import Silos
from fedrag.quickstart.training import make_trainer
from fedrag.quickstart.world import World
from fedrag.rag import RAGSystem
from fedrag.training.trainer import RAGTrainer
from fedrag.types import Document, Example

ROUNDS = 5
FIND_STEPS = {"full": 150, "quick": 50, "tiny": 10}
READ_STEPS = {"full": 100, "quick": 50, "tiny": 10}
DOMAINS = ("clinic", "harbour", "museum")
EVERY_STEP = "centralized, every site's steps"
STRATEGIES: dict[str, Callable[[], Strategy]] = {"averaging": Averaging, "exact LoRA": ExactLoRA}


@lru_cache(maxsize=4)
def silos_of(seed: int, size: Size) -> Silos:
    return federation.silos(real_text.text_of(size), seed, steps=FIND_STEPS[size], rounds=ROUNDS)


def tune(rag: RAGSystem, seed: int, *, site: str, size: Size) -> None:
    """One site alone, "federated", or centralized with one site's steps or every site's."""
    whole = silos_of(seed, size)
    if site == federation.FEDERATED:
        whole.federate(rag, progress=False)
    elif site == EVERY_STEP:
        replace(whole, steps=whole.steps * len(whole.names)).alone(rag, None, bar=False)
    elif site != federation.UNTRAINED:
        whole.alone(rag, None if site == federation.CENTRALIZED else site, bar=False)


def found(rag: RAGSystem, seed: int, *, size: Size) -> dict[str, Report]:
    return {federation.SETTING: federation.measure(rag, silos_of(seed, size))}


def share(whole: World, keep: Callable[[Example | Document], bool]) -> World:
    """What one site has of the world; its training passages still come first."""
    return replace(
        whole, documents=tuple(filter(keep, whole.documents)), train=tuple(filter(keep, whole.train)), dev=(), test=()
    )


def shares(whole: World, mixed: bool) -> dict[str, World]:
    """The sites: a domain each, or a third of every domain's entities each."""
    entities = sorted({document.metadata["entity"] for document in whole.documents})
    third = {entity: number % 3 for number, entity in enumerate(entities)}
    if mixed:
        return {f"site-{n}": share(whole, lambda row, n=n: third[row.metadata["entity"]] == n) for n in range(3)}
    return {d: share(whole, lambda row, d=d: row.metadata["domain"] == d) for d in DOMAINS}


def reader(rag: RAGSystem, part: World, folder: str, *, steps: int, seed: int) -> RAGTrainer:
    objective = RALT(rag, k=8, contexts=loop.Practice(rag, part))
    return make_trainer(objective, part.train, folder, steps=steps, rate=5e-3, seed=seed, bar=False)


def read(rag: RAGSystem, seed: int, *, how: str, size: Size, mixed: bool = False, strategy: str = "") -> None:
    """One domain alone, all together, or federated with a strategy."""
    whole, steps = world.world_of(seed, size), READ_STEPS[size]
    with TemporaryDirectory() as folder:
        if how == "federated":
            parts = shares(whole, mixed)

            def build(site: Site) -> RAGTrainer:
                part = parts[site.name]
                return reader(loop.make_system(part, seed), part, folder, steps=steps // ROUNDS, seed=seed)

            plan = Federation(
                rounds=ROUNDS, quorum=3, strategy=STRATEGIES[strategy](), seed=seed, evaluate=False
            )  # fmt: skip
            result = FederatedTask(build, plan).run([Site(name) for name in parts], progress=False)
            print(result.history.to_json())
            result.load_into(reader(rag, whole, folder, steps=steps, seed=seed))
        elif how == EVERY_STEP:
            reader(rag, whole, folder, steps=steps * len(DOMAINS), seed=seed).train()
        elif how != "frozen":
            part = whole if how == "centralized" else shares(whole, mixed=False)[how]
            reader(rag, part, folder, steps=steps, seed=seed).train()


def among_four(rag: RAGSystem, seed: int, *, size: Size) -> dict[str, Report]:
    whole = world.world_of(seed, size)
    return loop.measure(rag, whole, whole.test, settings=(loop.AMONG_FOUR, loop.GOLD))


def ratios(grid_: Ablation, setting: str, metric: str) -> str:
    """What is kept of the centralized quality, with the intervals of the ratios."""

    def values(regime: str) -> tuple[np.ndarray, list[str]]:
        records = [
            record for seed in sorted(grid_.cells[regime]) for record in grid_.cells[regime][seed].records[setting]
        ]
        return np.array([r.values[metric] for r in records]), [str(r.example.metadata[CLUSTER]) for r in records]

    whole = (federation.CENTRALIZED, EVERY_STEP)
    rows = [("regime", *(f"{metric} / {other}" for other in whole))]
    for regime in grid_.cells:
        after, clusters = values(regime)
        told: list[str] = []
        for other in whole:
            before, _ = values(other)
            low, high = ratio_interval(after, before, clusters=clusters)
            told.append(f"{after.mean() / before.mean():.3f} ({low:.3f} to {high:.3f})")
        rows.append((regime, *told))
    return f"## Ratio to centralized\n\n{markdown_table(rows)}"


def plans(size: Size) -> list[Plan]:
    """A grid for the retriever and one for the reader."""
    what = (__doc__ or "").partition("\n\n")[2].strip().replace("\n", " ") + f" {ROUNDS} rounds."
    seeds = (0, 1, 2) if size == "full" else (0,)
    sites = ["numpy"] if size == "tiny" else sorted(set(PACKAGES) - {federation.PUBLIC})
    finders = [federation.UNTRAINED, *sites, federation.FEDERATED, federation.CENTRALIZED, EVERY_STEP]
    named = {site: f"{site} alone" if site in sites else site for site in finders}
    readers: dict[str, dict[str, object]] = {"frozen": {"how": "frozen"}}
    readers |= {f"{domain} alone": {"how": domain} for domain in DOMAINS}
    for mixed in (False, True):
        readers |= {
            f"federated, {strategy}{', mixed sites' if mixed else ''}": {
                "how": "federated", "mixed": mixed, "strategy": strategy
            }
            for strategy in STRATEGIES
        }  # fmt: skip
    readers |= {name: {"how": name} for name in (federation.CENTRALIZED, EVERY_STEP)}
    finding = {"size": size, "steps": FIND_STEPS[size], "rounds": ROUNDS}
    reading = {"size": size, "steps": READ_STEPS[size], "rounds": ROUNDS}
    return [
        Plan(
            name="federated-retriever",
            title="Federated: a retriever, packages as sites",
            what=f"{what} {FIND_STEPS[size]} steps.",
            make=lambda seed: silos_of(seed, size).system(silos_of(seed, size).text),
            measure=partial(found, size=size),
            regimes={name: partial(tune, site=site, size=size) for site, name in named.items()},
            settings={name: {"site": site, **finding} for site, name in named.items()},
            columns={metric: (federation.SETTING, metric) for metric in ("recall@1", "recall@10", "mrr@10")},
            compared=("recall@1", "recall@10"),
            seeds=seeds,
            baseline=federation.UNTRAINED,
            pairs=[(federation.FEDERATED, named[other]) for other in (*sites, federation.CENTRALIZED, EVERY_STEP)],
            notes=partial(ratios, setting=federation.SETTING, metric="recall@10"),
        ),
        Plan(
            name="federated-reader",
            title="Federated: a reader, domains as sites",
            what=f"{what} {READ_STEPS[size]} steps.",
            make=lambda seed: loop.make_system(world.world_of(seed, size), seed),
            measure=partial(among_four, size=size),
            regimes={name: partial(read, size=size, **settings) for name, settings in readers.items()},
            settings={name: {**settings, **reading} for name, settings in readers.items()},
            columns={"gold among four": (loop.AMONG_FOUR, "exact_match"), "gold passage": (loop.GOLD, "exact_match")},
            compared=("gold among four",),
            seeds=seeds,
            pairs=[
                *(
                    ("federated, averaging", other)
                    for other in (federation.CENTRALIZED, EVERY_STEP, *(f"{d} alone" for d in DOMAINS))
                ),
                ("federated, exact LoRA", "federated, averaging"),
                ("federated, exact LoRA, mixed sites", "federated, averaging, mixed sites"),
            ],
            notes=partial(ratios, setting=loop.AMONG_FOUR, metric="exact_match"),
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(grid.main(plans, __file__, __doc__ or ""))
