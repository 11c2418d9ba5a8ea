"""Flower's own strategies behind our protocol: medians, trimmed means, Krum, server-side optimisers.

    Plan(rounds=20, strategy=FedAdam(eta=0.01))       # Plan wraps it in FlowerStrategy

A Flower strategy aggregates the replies; rounds, sampling, quorum and screening are ours. It is asked as Flower asks
it, `configure_train` at the start of a round and `aggregate_train` at its end, with messages to and from nodes that are
not there: what it would send is not sent. So a setting that says who takes part has no effect, and is refused.

It gets the states in float32, in the state's order; what it returns is checked and cast to the state's dtypes. Those
that measure distances between sites (Krum and its kin) get float64: Flower computes ‖x - y‖² as ‖x‖² + ‖y‖² - 2xy, and
with 100,000 parameters of size 1 and changes of 1e-4 what float32 leaves of that is noise, which picks the outlier.

A run works on a copy of the strategy: two runs of one plan do not share momenta. What it remembers as arrays is in
`state_dict`; a strategy of your own that remembers anything else does not resume exactly. The replies of a whole round
are held.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore.run import Run
from torch import Tensor

from fedrag.errors import ConfigError, InputError, QuorumError, TrainingError
from fedrag.federated.strategies.averaging import check_weight
from fedrag.federated.strategies.memory import fresh, remembered, remind
from fedrag.federated.strategies.strategy import Member, Update
from fedrag.federated.trainable import State

_REFUSED = {
    flower.FedProx: "it only sends a number that no site reads: use Proximal(mu) in build()",
    flower.DifferentialPrivacyClientSideFixedClipping: "it wants clipping at the sites, which do none",
    flower.DifferentialPrivacyClientSideAdaptiveClipping: "it wants clipping at the sites, which do none",
    flower.DifferentialPrivacyServerSideFixedClipping: "its guarantee needs Flower's own sampling of the sites",
    flower.DifferentialPrivacyServerSideAdaptiveClipping: "its guarantee needs Flower's own sampling of the sites",
    flower.FedXgbBagging: "it aggregates trees, and the sites send tensors",
    flower.FedXgbCyclic: "it aggregates trees, and the sites send tensors",
}
_SETTINGS = {  # what says who takes part, its values without effect, and what to set in its place
    "fraction_train": ((1.0,), "set Plan(fraction=...)"),
    "min_train_nodes": ((0, 1, 2), "set Plan(quorum=...)"),
    "min_available_nodes": ((0, 1, 2), "set Plan(quorum=...)"),
    "evaluate_metrics_aggr_fn": ((aggregate_metricrecords,), "the history has the metrics of every site"),
}
_DISTANCES = (flower.MultiKrum, flower.Bulyan)  # Krum is a MultiKrum
_RENEWING = (flower.FedAvgM, flower.FedAdagrad, flower.FedAdam, flower.FedYogi, flower.QFedAvg)


class FlowerStrategy:
    """A strategy of `flwr.serverapp.strategy`, or of one's own written for Flower.

    Needs to run where Flower lets messages be written: in a server app, or inside `engines.local.identity`.

    Raises:
        ConfigError: for what is no such strategy, for one that cannot work here, and for settings without effect;
            from `begin`, for one that sends the sites settings; from `finish`, where a metric that it needs is missing.
        QuorumError: from `finish`, for fewer replies than its guarantee needs.
        TrainingError: from `finish`, where it fails, or returns what is no state.
    """

    ranks = False

    def __init__(self, strategy: flower.Strategy) -> None:
        if not isinstance(cast(object, strategy), flower.Strategy):
            raise ConfigError(
                f"got a {type(strategy).__name__}, wanted a strategy of flwr.serverapp.strategy: FedAdam()"
            )
        self._name = type(strategy).__name__
        for refused, why in _REFUSED.items():
            if isinstance(strategy, refused):
                raise ConfigError(f"{self._name} cannot work here: {why}; take another strategy")
        for name, (idle, instead) in _SETTINGS.items():
            if hasattr(strategy, name) and getattr(strategy, name) not in idle:
                raise ConfigError(f"{self._name}({name}={getattr(strategy, name)!r}) has no effect here: {instead}")
        self._given = strategy
        self._strategy = fresh(strategy)

    def begin(self, round: int, state: State) -> None:
        """Show the strategy the state that the sites get."""
        if round == 0:
            self._strategy = fresh(self._given)
        self._round, self._state = round, state
        self._updates: list[Update] = []
        self._dtype = torch.float64 if isinstance(self._given, _DISTANCES) else torch.float32
        if isinstance(self._strategy, flower.FedAvgM):
            self._strategy.current_arrays = None  # it would keep its own, which is not yet cast
        config = ConfigRecord()
        with _aside():
            messages = list(self._strategy.configure_train(round + 1, self._record(state), config, _Nodes()))
        sent = {key for message in messages for record in message.content.config_records.values() for key in record}
        if extra := sorted((sent | set(config)) - {"server-round"}):
            raise ConfigError(
                f"{self._name} sends the sites the setting {extra[0]!r}, which nobody reads here: give it to the "
                "trainer in build(), and take a strategy that only aggregates"
            )

    def add(self, update: Update) -> None:
        """Keep the reply. Raises `InputError` where its weight, its names or a shape differ from the state's."""
        check_weight(update)
        shapes = {name: value.shape for name, value in self._state.items()}
        if {name: value.shape for name, value in update.state.items()} != shapes:
            raise InputError(
                f"site {update.member.site!r} replied with other names or shapes than the state's; {self._name} takes "
                "states that are alike"
            )
        self._updates.append(update)

    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return what the strategy makes of the replies, and the numbers of a `train_metrics_aggr_fn` of its own."""
        self._check_replies()
        try:
            arrays, metrics = self._strategy.aggregate_train(self._round + 1, self._replies())
        except AppExitException as error:
            raise TrainingError(f"{self._name} failed: {error}") from error
        finally:
            self._updates = []
        found = {name: torch.from_numpy(np.asarray(array.numpy())) for name, array in (arrays or {}).items()}
        if found.keys() != self._state.keys():
            raise TrainingError(
                f"{self._name} returned {len(found)} parameters, the state has {len(self._state)}: look for what it "
                "said in Flower's log"
            )
        new: dict[str, Tensor] = {}
        for name, old in self._state.items():
            if found[name].shape != old.shape or not bool(found[name].isfinite().all()):
                raise TrainingError(
                    f"{self._name} returned {name!r} with the shape {tuple(found[name].shape)} or with numbers that "
                    f"are not finite; wanted are finite ones of the shape {tuple(old.shape)}: lower its learning rate"
                )
            new[name] = found[name].to(old.dtype)
        own = getattr(self._strategy, "train_metrics_aggr_fn", None) not in (None, aggregate_metricrecords)
        numbers = metrics.items() if own and metrics else ()
        return new, {name: float(value) for name, value in numbers if isinstance(value, int | float)}

    def outgoing(self, state: State, member: Member) -> State:
        """The state itself."""
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """Every array that the strategy remembers and does not get anew each round."""
        return {name: value for name, value in remembered(self._strategy).items() if not self._renewed(name)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave. Raises `ConfigError` for what another strategy wrote."""
        self._strategy = fresh(self._given)
        remind(self._strategy, state)

    def _renewed(self, name: str) -> bool:
        return isinstance(self._strategy, _RENEWING) and name.split("/")[1] == "current_arrays"

    def _record(self, state: State) -> ArrayRecord:
        return ArrayRecord({name: Array(state[name].to(self._dtype).numpy()) for name in self._state})

    def _replies(self) -> list[Message]:
        """One message a site, in the order of the updates, with the metrics that all of them have."""
        weight = getattr(self._strategy, "weighted_by_key", "num-examples")
        key = getattr(self._strategy, "arrayrecord_key", "arrays")
        common = set[str].intersection(*(set(update.metrics) for update in self._updates))
        replies: list[Message] = []
        for node, update in enumerate(self._updates, start=_Nodes.first):
            metrics = MetricRecord({name: float(update.metrics[name]) for name in sorted(common)})
            metrics[weight] = float(update.weight)
            content = RecordDict({key: self._record(update.state), "metrics": metrics})
            asked = Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
            replies.append(Message(content, reply_to=asked))
        return replies

    def _check_replies(self) -> None:
        """Raise before the strategy would aggregate what its guarantee does not cover, or divide by zero."""
        strategy, n = self._strategy, len(self._updates)
        if not sum(update.weight for update in self._updates):
            raise TrainingError(f"the replies of {n} sites weigh 0 in total: set Plan(weighting='uniform')")
        least, why = 1, ""
        if isinstance(strategy, flower.MultiKrum):
            f, chosen = strategy.num_malicious_nodes, strategy.num_nodes_to_select
            least, why = max(2 * f + 3, f + chosen), f"against {f} malicious sites, choosing {chosen}"
        elif isinstance(strategy, flower.Bulyan):
            f = strategy.num_malicious_nodes
            least, why = 4 * f + 3, f"against {f} malicious sites"
        elif isinstance(strategy, flower.FedTrimmedAvg) and strategy.beta and strategy.beta * n < 1:
            least, why = max(n + 1, math.ceil(1 / strategy.beta)), f"to trim any with beta={strategy.beta:g}"
        elif isinstance(strategy, flower.QFedAvg):
            key = strategy.train_loss_key
            if bare := [u.member.site for u in self._updates if key not in u.metrics]:
                raise ConfigError(
                    f"QFedAvg weighs sites by their {key!r}, which site {bare[0]!r} does not tell; it tells "
                    f"{sorted(self._updates[0].metrics)}: set train_loss_key to one of these"
                )
        if n < least:
            raise QuorumError(
                f"{self._name} needs {least} replies {why}, and {n} came: set Plan(quorum={least}), or ask less of it"
            )


@contextmanager
def _aside() -> Generator[None]:
    """Undo what `configure_train` does besides: it draws from everybody's random numbers, and logs whom it drew."""
    log, kept = logging.getLogger("flwr"), random.getstate()
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
        random.setstate(kept)


class _Nodes(Grid):
    """A grid with as many nodes as a strategy would wait for; nothing can be sent to them."""

    first = 2  # 1 is the SuperLink's own id

    def get_node_ids(self) -> list[int]:
        """Two: as many as the settings that are not refused ask for."""
        return [self.first, self.first + 1]

    @property
    def run(self) -> Run:
        """None: there is no run behind it."""
        raise TrainingError("a strategy asked for the run while configuring training; take one that only aggregates")

    def set_run(self, run: Run) -> None:
        """Ignored."""

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Refused."""
        return self._refuse()

    def push_messages(self, *_: Any, **__: Any) -> list[str]:
        """Refused."""
        return self._refuse()

    def pull_messages(self, *_: Any, **__: Any) -> list[Message]:
        """Refused."""
        return self._refuse()

    def send_and_receive(self, *_: Any, **__: Any) -> list[Message]:
        """Refused."""
        return self._refuse()

    def _refuse(self) -> Any:
        raise TrainingError("a strategy sent messages while configuring training; take one that only aggregates")
