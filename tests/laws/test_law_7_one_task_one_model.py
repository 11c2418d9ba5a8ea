"""Law 7: one task gives one model, in this process, in Flower's simulation, and deployed with or without workers.

The task is a whole system, loaded from a folder at each site over the site's own store, and trained with dropout, so
that a process that draws other random numbers than its counterpart is seen.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest
from safetensors.torch import load_file
from torch import Tensor

from deploying import Deployment, deployed, ended
from fedrag.federated import Site, checkpoint
from fedrag.federated.checkpoint import Run
from fedrag.federated.deployment import worker
from fedrag.federated.deployment.project import init, load_task
from systems import EXAMPLES, tiny_system

pytestmark = [
    pytest.mark.slow,
    # Ray leaves closing its files and children to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

CLOSE = 1e-5
SHARES = {"a": EXAMPLES[:13], "b": EXAMPLES[13:18], "c": EXAMPLES[18:]}  # of 13, 5 and 6 examples
TASK = """
import torch
from transformers import TrainingArguments

from fedrag import RALT, RAGSystem, RAGTrainer
from fedrag.federated import FederatedTask, Plan

FOLDER = {folder!r}


def build(site):
    torch.set_num_threads(1)
    rag = RAGSystem.load(FOLDER + "/my-rag", store=site.store())
    args = TrainingArguments(
        FOLDER + "/out/" + site.name, optim="sgd", learning_rate=0.5, num_train_epochs=1, max_grad_norm=0.0,
        per_device_train_batch_size=4, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
    )
    return RAGTrainer(RALT(rag, shuffle=False), train_dataset=site.examples("train"), args=args)


task = FederatedTask(build, Plan(rounds=2, quorum=3, round_timeout=240, checkpoint=FOLDER + "/run"))
"""


class Task:
    """A task file, three sites with stores and examples of their own, and the runs that are taken of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rag = tiny_system(kind="bert", dropout=0.1, lora=4)
        rag.save(folder / "my-rag")
        self.sites: list[Site] = []
        for name, examples in SHARES.items():
            place = folder / name
            rag.dense.store.save(place / "store")
            rows = ({"question": one.question, "answers": list(one.answers)} for one in examples)
            (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (place / "site.toml").write_text(f'name = "{name}"\n[examples]\ntrain = "train.jsonl"\n')
            self.sites.append(Site.open(place / "site.toml"))
        (folder / "task.py").write_text(TASK.format(folder=str(folder)))
        self.app = init(folder / "task.py", folder / "app", name="law7")
        self.task = load_task(self.app / "task.py")

    def taken(self) -> Run:
        """The run in the checkpoint, which is cleared for the next."""
        run = checkpoint.load(self.folder / "run", self.task.plan)
        assert run is not None
        rmtree(self.folder / "run")
        return run

    def finals(self, run: Run) -> dict[str, dict[str, Tensor]]:
        """What each site kept of the run."""
        return {site.name: load_file(site.state / run.token / "final.safetensors") for site in self.sites}


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """What Ray has left is collected here, where its warnings are expected, and not in whatever test comes next."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task(tmp_path_factory.mktemp("law7"))


@pytest.fixture(scope="module")
def here(made: Task) -> Run:
    """The run in this process: what the others are held against."""
    result = made.task.run(made.sites, progress=False)
    run = made.taken()
    assert difference(run.state, result.state) == 0.0
    assert all(difference(final, run.state) == 0.0 for final in made.finals(run).values())
    return run


@pytest.fixture(scope="module")
def deployment(made: Task) -> Iterator[Deployment]:
    with deployed(made.folder, made.app, sites=list(SHARES)) as started:
        started.serve()
        for name in SHARES:
            started.start_site(name)
        started.joined(*SHARES)
        yield started


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest, over all parameters; the names are the same."""
    assert sorted(one) == sorted(other)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def agree(made: Task, here: Run, there: Run, where: str) -> None:
    largest = difference(there.state, here.state)
    print(f"{where}: the largest difference is {largest:.3g}")
    assert largest <= CLOSE, f"{where}: the largest difference is {largest:.3g}"
    for name, final in made.finals(there).items():
        assert difference(final, there.state) == 0.0, f"{where}: site {name} kept another state"
    ours, theirs = ([*run.history.rounds, run.history.closing] for run in (here, there))
    assert [sorted(one.sites) for one in theirs] == [sorted(one.sites) for one in ours] == [list(SHARES)] * 3
    assert there.history.curve("train_loss") == pytest.approx(here.history.curve("train_loss"), abs=CLOSE), where


def submitted(deployment: Deployment) -> str:
    with deployment.operator() as link:
        return ended(link, link.submit(deployment.app).id, seconds=400)


def test_training_moves_the_model_and_dropout_counts(made: Task, here: Run) -> None:
    seeded_otherwise = replace(made.task.plan, seed=1, checkpoint=None)
    before = made.task.build(made.sites[0]).objective.trainable()
    assert difference(here.state, {name: value.detach() for name, value in before.items()}) > 100 * CLOSE
    other = type(made.task)(made.task.build, seeded_otherwise).run(made.sites, progress=False)
    assert difference(other.state, here.state) > 100 * CLOSE


def test_simulated(made: Task, here: Run) -> None:
    made.task.simulate(made.sites, progress=False)
    there = made.taken()
    agree(made, here, there, "simulated")


def test_deployed(made: Task, here: Run, deployment: Deployment) -> None:
    log = submitted(deployment)
    assert log.startswith("finished:completed"), log
    agree(made, here, made.taken(), "deployed")


def test_deployed_with_workers(made: Task, here: Run, deployment: Deployment) -> None:
    for site in made.sites:
        words = (str(made.app / "task.py"), "--site", str(site.folder / "site.toml"))
        deployment.start(f"worker-{site.name}", "worker", *words)
    for site in made.sites:
        deployment.await_text(f"worker-{site.name}", worker.NAME)
    log = submitted(deployment)
    assert log.startswith("finished:completed"), log
    agree(made, here, made.taken(), "deployed with workers")
