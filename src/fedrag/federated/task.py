"""A task: the recipe that builds a trainer at a site, and the plan by which many sites train one model.

def build(site: Site) -> RAGTrainer:
    rag = RAGSystem.load("my-rag", store=site.store())
    return RAGTrainer(RALT(rag), train_dataset=site.examples("train"))

task = FederatedTask(build, Plan(rounds=10, quorum=3))

build(Site.local()).train()          # centralized
task.run(sites)                      # federated, in this process
task.simulate(sites=100)             # federated, on Flower's Ray simulation
# fedrag federate submit ...         # federated, on a running Flower deployment, which imports `task`
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrag.errors import ConfigError, TrainingError
from fedrag.federated.client import Participant, Reply, Request
from fedrag.federated.exchange import pack, to_bytes
from fedrag.federated.plan import Plan
from fedrag.federated.reporting import reporting
from fedrag.federated.site import Site

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from torch import Tensor
    from transformers import TrainerCallback

    from fedrag.federated.app import Node
    from fedrag.federated.checkpoint import Run
    from fedrag.federated.history import History

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Federated:
    """What a run gives: the final state, and what happened."""

    state: dict[str, Tensor]
    history: History

    def load_into(self, built: Any) -> None:
        """Put the state into a trainer (or any `Trainable`); parameters that are personal stay as they are there."""
        from fedrag.federated.trainers import trainable

        into = trainable(built)
        here = into.exchange_state()
        into.load_exchange_state({name: self.state.get(name, value) for name, value in {**here, **self.state}.items()})
        if finish := getattr(into, "finish", None):
            finish()

    def save(self, path: str | Path) -> None:
        """Write the state as a safetensors file."""
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(to_bytes(pack(self.state)))
        part.replace(path)


class FederatedTask:
    """A recipe and a plan.

    Args:
        build: makes the trainer at a site: any `transformers.Trainer`, or an object with the members of `Trainable`. It
            runs at the site, with the site's own data, and nowhere else.
        plan: rounds, quorum, strategy and the rest.
    """

    def __init__(self, build: Callable[[Site], Any], plan: Plan) -> None:
        self.build = build
        self.plan = plan

    def run(
        self,
        sites: Sequence[Site],
        *,
        resume: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
        progress: bool = True,
    ) -> Federated:
        """Federate in this process, one site after another; every site's trainer stays in memory.

        Args:
            sites: each with a name of its own.
            resume: go on from the plan's checkpoint, where there is one.
            callbacks: of `transformers`, fed with the rounds as steps: trackers, say.
            progress: show a bar.

        Raises:
            QuorumError: when too few sites can train; the rounds before are in the plan's checkpoint.
            ConfigError: for sites that cannot fulfil the plan.
        """
        from fedrag.federated.app import client_app
        from fedrag.federated.engines.local import run_local

        by_name = self._named(sites)
        participants = self._participants(lambda node: by_name[str(node["site"])])
        found: list[Run] = []
        with reporting(self.plan, callbacks, progress) as on_round:
            server = self._server(on_round, found.append, lambda _: self._before(resume))
            run_local(server, client_app(participants), [{"site": name} for name in by_name])
        return Federated(found[0].state, found[0].history)

    def simulate(
        self,
        sites: int | Sequence[Site],
        *,
        resume: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
        progress: bool = True,
        client_resources: dict[str, float] | None = None,
    ) -> Federated:
        """Federate on this machine with Flower's simulation, many sites at a time; wants `fedrag[simulation]`.

        Args:
            sites: the sites, or how many to make: each then has the settings `index` and `of`, for `build` to take its
                share of the data by. Every message builds its site's trainer anew.
            resume: as for `run`.
            callbacks: as for `run`.
            progress: show a bar.
            client_resources: what Ray gives to each message, as {"num_cpus": 1, "num_gpus": 0.25}.
        """
        from fedrag.federated.app import client_app
        from fedrag.federated.engines.ray import run_ray

        made = _numbered(sites) if isinstance(sites, int) else list(sites)
        self._named(made)
        build, plan = self.build, self.plan

        def answer(node: Node, request: Request) -> Reply:
            return Participant(build, plan, made[int(node["partition-id"])]).answer(request)

        found: list[Run] = []
        with reporting(plan, callbacks, progress) as on_round:
            server = self._server(on_round, found.append, lambda _: self._before(resume))
            run_ray(server, client_app(answer), len(made), client_resources=client_resources)
        if not found:
            raise TrainingError("the simulation ended without a result; its log says why")
        return Federated(found[0].state, found[0].history)

    @cached_property
    def client_app(self) -> ClientApp:
        """What a SuperNode runs; its node's configuration names the site: `site="/path/to/site.toml"`."""
        from fedrag.federated.app import client_app
        from fedrag.federated.deployment.worker import answer_at

        return client_app(lambda node, request: answer_at(self, Site.open(str(node["site"])), request))

    @cached_property
    def server_app(self) -> ServerApp:
        """What a SuperLink runs; the run's configuration may say `resume=true`."""

        def before(context: Context) -> Run | None:
            return self._before(bool(context.run_config.get("resume", False)))

        def tell(done: Any) -> None:
            _log.info("round %d: %s", done.number, dict(done.metrics))

        def over(run: Run) -> None:
            if not self.plan.checkpoint:
                _log.warning("the plan has no checkpoint: the final state is at the sites alone")

        return self._server(tell, over, before)

    def participant(self, site: Site) -> Participant:
        """What answers at a site."""
        return Participant(self.build, self.plan, site)

    def _participants(self, find: Callable[[Node], Site]) -> Callable[[Node, Request], Reply]:
        known: dict[str, Participant] = {}

        def answer(node: Node, request: Request) -> Reply:
            site = find(node)
            if site.name not in known:
                known[site.name] = self.participant(site)
            return known[site.name].answer(request)

        return answer

    def _server(
        self, on_round: Callable[[Any], None], over: Callable[[Run], None], before: Callable[[Context], Run | None]
    ) -> ServerApp:
        from fedrag.federated.app import server_app

        return server_app(self.plan, resume=before, on_round=on_round, over=over)

    def _before(self, resume: bool) -> Run | None:
        """The run to go on with."""
        from fedrag.federated.checkpoint import load

        folder = self.plan.checkpoint
        run = load(Path(folder), self.plan) if folder else None
        if resume and not folder:
            raise ConfigError("resume wants the folder of a run: give Plan(checkpoint=...)")
        if run and not resume:
            raise ConfigError(
                f"{folder} holds a run: resume it (resume=True), or give Plan(checkpoint=...) another folder"
            )
        return run

    def _named(self, sites: Sequence[Site]) -> dict[str, Site]:
        by_name = {site.name: site for site in sites}
        if len(by_name) < len(sites):
            raise ConfigError(f"{len(sites)} sites have {len(by_name)} names: give each its own")
        if len(sites) < self.plan.quorum:
            raise ConfigError(f"{len(sites)} sites cannot meet a quorum of {self.plan.quorum}: lower Plan(quorum=...)")
        return by_name


def _numbered(count: int) -> list[Site]:
    width = len(str(count - 1))
    return [Site(f"site-{n:0{width}d}", settings={"index": n, "of": count}) for n in range(count)]
