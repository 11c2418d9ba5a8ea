"""A reply is used only when it is what was asked for: names, shapes, dtypes, finite numbers, a sound weight, a norm.

Flower's strategies check none of it: one site's NaN becomes everybody's, without an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from fedrag.errors import InputError
from fedrag.federated.client import FAULTS, Reply, numbers
from fedrag.federated.exchange import Packed, unpack
from fedrag.federated.history import SiteRound
from fedrag.federated.plan import Plan
from fedrag.federated.strategies.strategy import Member, Update
from fedrag.federated.trainable import State

_LARGEST = 2.0**53  # whole numbers are exact up to here
_MOST = 256
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def told(reply: Reply) -> str | None:
    """What a site says went wrong, in our own words and with the class of its error; `None` where nothing did."""
    fault = reply.config.get("fault")
    if fault is None:
        return None
    kind = str(reply.config.get("class", ""))
    return FAULTS.get(str(fault), "it failed and gave a code that nobody knows") + (
        f" ({kind})" if _CLASS.fullmatch(kind) else ""
    )


def measured(reply: Reply, member: Member) -> SiteRound:
    """The reply's numbers. Raises `InputError` where it says a fault, another name, or no sound number of examples."""
    if (fault := told(reply)) is not None:
        raise InputError(fault)
    if reply.config.get("site") != member.site:
        raise InputError("it answers under another name than at the start")
    if len(reply.metrics) > _MOST:
        raise InputError(f"it reports {len(reply.metrics)} numbers, {_MOST} at most are taken")
    metrics = numbers(reply.metrics)
    examples = metrics.get("num-examples", math.nan)
    if not 0 < examples <= _LARGEST:
        raise InputError(f"its number of examples is {reply.metrics.get('num-examples')}")
    return SiteRound(examples, metrics)


def screened(reply: Reply, member: Member, sent: Mapping[str, Packed], plan: Plan) -> Update:
    """The reply as an update. Raises `InputError` with the reason where it cannot be used.

    Args:
        reply: from another process: nothing in it is taken on trust.
        member: what the site told at the start.
        sent: what it was given.
        plan: its weighting and its largest norm.
    """
    of_site = measured(reply, member)
    same_names(reply.state, sent)
    for name, packed in reply.state.items():
        if (packed.shape, packed.dtype) != (sent[name].shape, sent[name].dtype):
            raise InputError(
                f"{name!r} is {packed.shape} of {packed.dtype}, not {sent[name].shape} of {sent[name].dtype}"
            )
    state = unpack(reply.state)
    finite(state)
    if plan.max_norm is not None and (norm := distance(state, unpack(sent))) > plan.max_norm:
        raise InputError(f"its change has the norm {norm:.3g}, above max_norm = {plan.max_norm:g}")
    return Update(member, state, of_site.examples if plan.weighting == "examples" else 1.0, of_site.metrics)


def same_names(names: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise `InputError` for other names, or another order."""
    names, wanted = list(names), list(wanted)
    if names != wanted:
        odd = sorted(set(names) ^ set(wanted))
        raise InputError(
            f"its parameter names differ: {odd[0][:80]!r}" if odd else "its parameters come in another order"
        )


def finite(state: State) -> None:
    """Raise `InputError` for numbers that are none."""
    if bad := [name for name, value in state.items() if not bool(value.isfinite().all())]:
        raise InputError(f"{bad[0]!r} holds numbers that are not finite")


def distance(state: State, other: State) -> float:
    """The L2 norm of the difference of two states, in float64."""
    return math.sqrt(
        sum(float((value.double() - other[name].double()).square().sum()) for name, value in state.items())
    )
