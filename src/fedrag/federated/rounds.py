"""The round loop: around Flower's messages and strategies, what they lack.

Flower's own loop has no quorum, no deadline for absent nodes, no look at what comes back, no checkpoint and no resume.
Here a round is one message per site (measure what you get, then train), replies are screened one by one and folded in
the order of the sites' names as soon as all before them are in, so that the same replies give the same bits in
whatever order they arrive, and what the next round depends on is on disk before it begins.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.serverapp import Grid

from fedrag.errors import ConfigError, InputError, QuorumError
from fedrag.federated import checkpoint
from fedrag.federated.checkpoint import Run
from fedrag.federated.client import Reply, Request, Scalar
from fedrag.federated.exchange import Packs, pack, size
from fedrag.federated.history import History, Round, SiteRound, averaged
from fedrag.federated.plan import Plan
from fedrag.federated.roster import Roster
from fedrag.federated.screening import measured, screened
from fedrag.federated.strategies.strategy import Update
from fedrag.federated.transport import ask, await_nodes, await_others

_log = logging.getLogger(__name__)


class Rounds:
    """One run of a plan over a grid.

    Args:
        grid: reaches the sites.
        plan: what to do.
        on_round: called with every round when it is over, the closing one too.
    """

    def __init__(self, grid: Grid, plan: Plan, on_round: Callable[[Round], None] = lambda _: None) -> None:
        self.grid = grid
        self.plan = plan
        self.on_round = on_round
        self.strategy = plan.folding()
        self.roster = Roster(plan, ranks=self.strategy.ranks)

    def run(self, resumed: Run | None = None) -> Run:
        """Train all rounds, or those that are left; then let every site take the final state and measure it.

        Raises:
            QuorumError: when too few sites are there in time, or too few replies can be used. The rounds before are in
                the plan's checkpoint.
        """
        run = resumed or Run(secrets.token_hex(8), "", {}, {}, History())
        self.strategy.load_state_dict(run.strategy)
        for number in range(len(run.history.rounds), self.plan.rounds):
            self._meet(run)
            done = self._round(run, number)
            run.history.rounds.append(done)
            run.strategy = self.strategy.state_dict()
            self._over(run, done)
        if run.history.closing is None:
            self._meet(run)
            run.history.closing = self._close(run)
            self._over(run, run.history.closing)
        return run

    def _meet(self, run: Run) -> None:
        """Greet the sites that are new; wait until enough are there that can take part."""
        quorum, end = self.plan.quorum, time.monotonic() + self.plan.node_timeout
        greeting, begun = Request("hello", {"run": run.token}), bool(run.fingerprint)
        told: dict[int, Reply | str] = {}
        while True:
            nodes = await_nodes(self.grid, quorum, self.plan.node_timeout)
            new = [node for node in self.roster.online(nodes) if node not in told]
            replies = dict(ask(self.grid, dict.fromkeys(new, greeting), self.plan.round_timeout))
            told |= dict.fromkeys(new, "no reply") | replies
            if begun:
                self.roster.admit(run, replies)
            else:  # until they are enough, what most sites agree on may change
                self.roster.begin(run, {node: told[node] for node in nodes if node in told})
            members = self.roster.members
            if len(members) >= quorum:
                return
            if not await_others(self.grid, {*told, *members}, end):
                break
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.roster.absent.items())) or "no reply"
        raise QuorumError(
            f"{len(members)} sites can take part, the plan's quorum is {quorum}. Left out: {why}. {self._next()}"
        )

    def _round(self, run: Run, number: int) -> Round:
        began = time.monotonic()
        waiting = self._sample(number)
        self.strategy.begin(number, run.state)
        used: dict[str, SiteRound] = {}
        rejected: dict[str, str] = {}
        sent = self._outgoing(run, waiting, rejected)
        waiting = list(sent)
        config: dict[str, Scalar] = {"run": run.token, "fingerprint": run.fingerprint, "round": number}
        arrived: dict[int, Update | str] = {}
        bytes_up = 0
        for node, reply in ask(self.grid, _requests("train", config, sent), self.plan.round_timeout):
            bytes_up += size(reply.state) if isinstance(reply, Reply) else 0
            arrived[node] = self._screened(node, reply, sent[node])
            while waiting and waiting[0] in arrived:
                self._fold(waiting.pop(0), arrived, used, rejected)
        silent = [node for node in waiting if node not in arrived]
        for node in waiting:
            if node in arrived:
                self._fold(node, arrived, used, rejected)
        quiet = tuple(self.roster.members[node].site for node in silent)
        if len(used) < self.plan.quorum:
            raise QuorumError(
                f"round {number}: {len(used)} usable replies, the plan's quorum is {self.plan.quorum}; left out: "
                f"{rejected or 'none'}; silent: {', '.join(quiet) or 'none'}. {self._next()}"
            )
        run.state, numbers = self.strategy.finish()
        metrics = {**averaged(used), **numbers}
        down = sum(map(size, sent.values()))
        return Round(number, used, rejected, quiet, metrics, down, bytes_up, time.monotonic() - began)

    def _screened(self, node: int, reply: Reply | str, sent: Packs) -> Update | str:
        if isinstance(reply, str):
            return reply
        try:
            return screened(reply, self.roster.members[node], sent, self.plan)
        except InputError as error:
            return str(error)

    def _fold(
        self, node: int, arrived: dict[int, Update | str], used: dict[str, SiteRound], rejected: dict[str, str]
    ) -> None:
        update = arrived.pop(node)
        if isinstance(update, str):
            self._reject(self.roster.members[node].site, update, rejected)
        else:
            self.strategy.add(update)
            used[update.member.site] = SiteRound(update.metrics["num-examples"], update.metrics)

    def _reject(self, site: str, why: str, rejected: dict[str, str]) -> None:
        rejected[site] = why
        _log.warning("site %s is left out: %s", site, why)

    def _close(self, run: Run) -> Round:
        began = time.monotonic()
        used: dict[str, SiteRound] = {}
        rejected: dict[str, str] = {}
        sent = self._outgoing(run, self.roster.by_name(), rejected)
        config: dict[str, Scalar] = {"run": run.token, "fingerprint": run.fingerprint}
        replies = dict(ask(self.grid, _requests("close", config, sent), self.plan.round_timeout))
        for node in (node for node in sent if node in replies):
            reply, member = replies[node], self.roster.members[node]
            try:
                if isinstance(reply, str):
                    raise InputError(reply)
                used[member.site] = measured(reply, member)
            except InputError as error:
                self._reject(member.site, str(error), rejected)
        silent = tuple(self.roster.members[node].site for node in sent if node not in replies)
        down = sum(map(size, sent.values()))
        return Round(self.plan.rounds, used, rejected, silent, averaged(used), down, 0, time.monotonic() - began)

    def _sample(self, number: int) -> list[int]:
        """The nodes that train in this round, in the order of their names; the same ones when it is run again."""
        nodes = self.roster.by_name()
        size = min(len(nodes), max(self.plan.quorum, math.ceil(self.plan.fraction * len(nodes) - 1e-9)))
        drawn = random.Random(f"{self.plan.seed}/{number}").sample(range(len(nodes)), size)
        return [nodes[place] for place in sorted(drawn)]

    def _outgoing(self, run: Run, nodes: list[int], rejected: dict[str, str]) -> dict[int, Packs]:
        """What each site gets. One for which the strategy has no state is left out, and the others train."""
        if meet := getattr(self.strategy, "meet", None):
            meet(run.state, [self.roster.members[node] for node in self.roster.by_name()])
        sent: dict[int, Packs] = {}
        for node in nodes:
            member = self.roster.members[node]
            try:
                sent[node] = pack(self.strategy.outgoing(run.state, member), self.plan.precision)
            except ConfigError:
                raise
            except InputError as error:
                self._reject(member.site, str(error), rejected)
        return sent

    def _over(self, run: Run, done: Round) -> None:
        if self.plan.checkpoint:
            checkpoint.save(Path(self.plan.checkpoint), self.plan, run)
        self.on_round(done)

    def _next(self) -> str:
        if self.plan.checkpoint:
            return f"The rounds before are in {self.plan.checkpoint}: mend the sites and resume"
        return "Mend the sites and run again; with Plan(checkpoint=...) a run can be resumed"


def _requests(kind: str, config: Mapping[str, Scalar], states: Mapping[int, Packs]) -> dict[int, Request]:
    return {node: Request(kind, config, state) for node, state in states.items()}
