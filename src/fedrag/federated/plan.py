"""A plan: how many rounds, how many sites they need, and how the sites' states become one.

    Plan(rounds=10, quorum=3, strategy=ExactLoRA(), checkpoint="runs/federated")

What cannot work is refused here, with the reason, and not in round 3.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from fedrag.errors import ConfigError
from fedrag.federated.exchange import Precision

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

    from fedrag.federated.strategies.strategy import Strategy

Weighting = Literal["examples", "uniform"]

_MEMBERS = ("ranks", "begin", "add", "finish", "outgoing", "state_dict", "load_state_dict")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a task is federated.

    Args:
        rounds: how often the sites train and their states become one.
        quorum: usable replies that a round needs; fewer end the run, which can be resumed.
        strategy: how the states become one: `Averaging()` if `None`, `ExactLoRA()`, or a strategy of
            `flwr.serverapp.strategy`.
        fraction: share of the sites that train in a round, drawn from `seed`; never fewer than the quorum.
        weighting: a site's weight in an average: its number of "examples", which is its own word, or "uniform".
        seed: of the sites' data order and dropout (with the site and the round) and of what `fraction` draws.
        keep_optimizer: each site keeps its optimiser's state from round to round, on its own disk; else it starts anew.
        evaluate: each site measures what it gets before it trains, and the final state.
        personal: patterns (`fnmatch`) of parameter names that stay at the site and are used there.
        precision: "keep" sends each parameter in its own dtype; "bfloat16" halves the bytes of float32, and loses
            changes smaller than 1/256 of a parameter, in both directions.
        max_norm: largest L2 norm of a site's change; a reply above it is left out.
        round_timeout: seconds that a round waits for replies.
        node_timeout: seconds that a round waits for enough sites to be there.
        checkpoint: folder of the state after each round, which a run can be resumed from; `None` keeps nothing.

    Raises:
        ConfigError: for values that are impossible, alone or together.
    """

    rounds: int
    quorum: int = 1
    strategy: Strategy | FlowerStrategy | None = None
    fraction: float = 1.0
    weighting: Weighting = "examples"
    seed: int = 0
    keep_optimizer: bool = False
    evaluate: bool = True
    personal: Sequence[str] = ()
    precision: Precision = "keep"
    max_norm: float | None = None
    round_timeout: float = 3600.0
    node_timeout: float = 300.0
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("quorum", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is a whole number from {least} on, got {value!r}")
        for name in ("keep_optimizer", "evaluate"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is true or false, got {getattr(self, name)!r}")
        if not _number(self.fraction) or self.fraction > 1:
            raise ConfigError(f"fraction is a share above 0 and up to 1, got {self.fraction!r}")
        for name, known in (("weighting", get_args(Weighting)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("round_timeout", "node_timeout", "max_norm"):
            value = getattr(self, name)
            if not _number(value) and not (value is None and name == "max_norm"):
                raise ConfigError(f"{name} is a number above 0, got {value!r}")
        personal, folder = cast(Any, self.personal), cast(Any, self.checkpoint)
        if not isinstance(personal, list | tuple) or not all(
            isinstance(one, str) and one for one in cast(Any, personal)
        ):
            raise ConfigError(f"personal is a list of patterns, as ['generator/*norm*'], got {personal!r}")
        if folder is not None and not (isinstance(folder, str | Path) and str(folder)):
            raise ConfigError(f"checkpoint is the path of a folder, or None, got {folder!r}")
        if self.strategy is not None:  # the default works, and to make it would load torch
            self.folding()

    def folding(self) -> Strategy:
        """The strategy, behind our protocol."""
        from fedrag.federated.strategies.averaging import Averaging

        if self.strategy is None:
            return Averaging()
        if isinstance(self.strategy, type):
            raise ConfigError(
                f"strategy is the class {self.strategy.__name__}: give {self.strategy.__name__}(), one of it"
            )
        if hasattr(self.strategy, "aggregate_train"):
            from fedrag.federated.strategies.flower import FlowerStrategy

            return FlowerStrategy(cast(Any, self.strategy))
        if missing := [name for name in _MEMBERS if not hasattr(self.strategy, name)]:
            raise ConfigError(
                f"{type(self.strategy).__name__} is no strategy: it has no {missing[0]}; take Averaging(), ExactLoRA() "
                "or one of flwr.serverapp.strategy"
            )
        return cast("Strategy", self.strategy)

    def digest(self) -> str:
        """Of all that must be the same at every site, and in a resumed run."""
        named = [self.rounds, self.seed, self.keep_optimizer, self.evaluate, list(self.personal), self.precision]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
