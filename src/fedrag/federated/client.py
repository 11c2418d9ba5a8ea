"""What a site does with a request. It knows nothing of Flower, and the same code answers in every mode.

A site is asked three things: "hello" (what its trainer exchanges, before anything is trained), "train" (take a state,
measure it, train a round, give the state back) and "close" (take the final state, measure and keep it). What leaves is
a state, numbers under plain names, and a few words of fixed form; what goes wrong leaves as a code of `FAULTS` and the
class of the error. The text of an error may quote the site's data, so it goes into the site's own log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from fedrag.federated.exchange import Packs, pack, unpack
from fedrag.federated.kept import Kept
from fedrag.federated.plan import Plan
from fedrag.federated.site import Site

if TYPE_CHECKING:
    from fedrag.federated.randomness import RandomState
    from fedrag.federated.trainable import State, Trainable

FAULTS = {
    "request": "the request is malformed",
    "site": "what it is asked, or its site.toml, cannot be read",
    "hello": "telling what it trains failed",
    "build": "build(site) failed",
    "fingerprint": "its base model, parameter names, adapters or plan are not those of the other sites",
    "state": "the state does not fit its trainer",
    "evaluate": "evaluating failed",
    "train": "training failed",
    "close": "taking over the final state failed",
    "finite": "its training gave numbers that are not finite",
    "worker": "its resident worker does not answer",
}
"""What can go wrong at a site, and all that is told of it."""

Scalar = str | int | float | bool

_METRIC = re.compile(r"[a-zA-Z][a-zA-Z0-9_@./-]{0,63}")
_log = logging.getLogger("fedrag.site")


@dataclass(frozen=True, slots=True)
class Request:
    """What a site is asked: `kind` is "hello", "train" or "close"; the state travels with the last two."""

    kind: str
    config: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    state: Packs = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Reply:
    """What leaves a site: a state, numbers, and words of fixed form."""

    config: Mapping[str, Scalar]
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    state: Packs = field(default_factory=dict[str, Any])


class _Fault(Exception):
    def __init__(self, code: str, cause: BaseException | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.cause = cause


class Participant:
    """A site that answers requests with the trainer that `build` makes there; the trainer is made once and kept."""

    def __init__(self, build: Callable[[Site], Any], plan: Plan, site: Site) -> None:
        self.build = build
        self.plan = plan
        self.site = site
        self._trainable: Trainable | None = None
        self._fingerprint = ""
        self._run: Scalar = ""
        self._random: RandomState | None = None
        self._own: Packs = {}  # the site's own parameters as `build` made them

    def answer(self, request: Request) -> Reply:
        """Answer; what fails becomes a reply that says so. Interrupts pass."""
        work = {"hello": self._hello, "train": self._train, "close": self._close}
        try:
            if request.kind not in work:
                raise _Fault("request")
            kept = _attempt("request", lambda: Kept(self.site, request.config.get("run")))
            return _attempt(request.kind, lambda: work[request.kind](request, kept))
        except _Fault as fault:
            _log.error("site %s: %s", self.site.name, FAULTS[fault.code], exc_info=fault.cause)
            cause = type(fault.cause).__name__ if fault.cause else ""
            return Reply({"site": self.site.name, "fault": fault.code, **({"class": cause[:64]} if cause else {})})

    def _hello(self, request: Request, kept: Kept) -> Reply:
        if self._run != request.config["run"]:
            self._trainable = None  # another run starts from what `build` makes, not from what the last one left
        began = time.perf_counter()
        trainable = self._built(request)
        seconds = time.perf_counter() - began
        exchanged, _ = self._split(trainable.exchange_state())
        metrics = {"num-examples": float(trainable.num_examples), "build_seconds": seconds}
        return Reply({**self._known(), **_scales(trainable)}, metrics, pack(exchanged, self.plan.precision))

    def _train(self, request: Request, kept: Kept) -> Reply:
        from fedrag.federated.trainable import Segment

        round = request.config.get("round")
        if type(round) is not int or not 0 <= round < self.plan.rounds:
            raise _Fault("request")
        trainable = self._ready(request, kept, round)
        metrics = {"num-examples": float(trainable.num_examples), **self._measured(trainable)}
        optimizer = kept.optimizer if self.plan.keep_optimizer else None
        segment = Segment(round, self.plan.rounds, self.site.name, self.plan.seed, optimizer)
        if round == 0 and self._random is not None:
            self._random.restore()  # as if nothing had come between building and training
        began = time.perf_counter()
        metrics |= numbers(trainable.train(segment), "train_")
        metrics["train_seconds"] = time.perf_counter() - began
        exchanged, own = self._split(trainable.exchange_state())
        if not all(bool(value.isfinite().all()) for value in (*exchanged.values(), *own.values())):
            raise _Fault("finite")
        if own:
            kept.keep_own(round, own)
        return Reply(self._known(), metrics, pack(exchanged, self.plan.precision))

    def _close(self, request: Request, kept: Kept) -> Reply:
        trainable = self._ready(request, kept, self.plan.rounds)
        if finish := getattr(trainable, "finish", None):
            finish()
        kept.keep_final(trainable.exchange_state())
        return Reply(self._known(), {"num-examples": float(trainable.num_examples), **self._measured(trainable)})

    def _ready(self, request: Request, kept: Kept, round: int) -> Trainable:
        """The trainer with the request's state in it, and the site's own parameters as the rounds before left them."""
        trainable = self._built(request)
        if request.config.get("fingerprint") != self._fingerprint:
            raise _Fault("fingerprint")

        def load() -> None:
            own = unpack((kept.own(round) if self._own else None) or self._own)
            got = unpack(request.state)
            names = dict.fromkeys([*trainable.exchange_state(), *got])
            trainable.load_exchange_state({name: own[name] if name in own else got[name] for name in names})

        _attempt("state", load)
        return trainable

    def _built(self, request: Request) -> Trainable:
        if self._trainable is not None:
            return self._trainable
        self._run = request.config["run"]
        self._trainable = built = _attempt("build", self._build)
        return built

    def _build(self) -> Trainable:
        from fedrag.federated.randomness import RandomState, untouched
        from fedrag.federated.trainers import trainable

        with untouched():  # sites in one process are made alike, in whatever order they are met
            built = trainable(self.build(self.site))
            self._random = RandomState.now()
        exchanged, own = self._split(built.exchange_state())
        self._own = pack(own)
        self._fingerprint = _fingerprint(built, exchanged, self.plan)
        return built

    def _measured(self, trainable: Trainable) -> dict[str, float]:
        if not self.plan.evaluate:
            return {}
        return _attempt("evaluate", lambda: numbers(trainable.evaluate(), "eval_"))

    def _split(self, state: State) -> tuple[State, State]:
        from fedrag.federated.trainable import personal

        return personal(state, self.plan.personal)

    def _known(self) -> dict[str, Scalar]:
        return {"site": self.site.name, "fingerprint": self._fingerprint}


def _attempt(code: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; what goes wrong in it is a fault of this code, unless it says which it is.

    `build` and trainers are anybody's code, and whatever they raise may quote the site's data: nothing may pass.
    """
    try:
        return work()
    except _Fault:
        raise
    except Exception as error:
        raise _Fault(code, error) from None


def numbers(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The plain finite numbers under plain names, and nothing else that a trainer may put there."""
    named = {name if name.startswith(prefix) else f"{prefix}{name}": value for name, value in found.items()}
    return {
        name: float(value)
        for name, value in named.items()
        if _METRIC.fullmatch(name) and isinstance(value, Real) and math.isfinite(value)
    }


def _fingerprint(trainable: Trainable, exchanged: State, plan: Plan) -> str:
    own = getattr(trainable, "fingerprint", None)
    if own is not None:
        told = own(tuple(plan.personal))
    else:
        told = [[name, list(value.shape), str(value.dtype)] for name, value in exchanged.items()]
    # products of several scales are not averaged by averaging their factors: only some strategies can take them
    scales = {} if plan.folding().ranks else _scales(trainable)
    return hashlib.sha256(json.dumps([plan.digest(), told, scales]).encode()).hexdigest()


def _scales(trainable: Trainable) -> dict[str, Scalar]:
    scales = getattr(trainable, "scales", dict[str, float])()
    return {"scales": json.dumps(scales)} if scales else {}
