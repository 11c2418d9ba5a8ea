"""A reply is used only when it is what was asked for: names, shapes, dtypes, finite numbers, a sound weight, a norm.

Flower's strategies check none of it: one site's NaN becomes everybody's, without an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fedrag.errors import InputError
from fedrag.federated.client import FAULTS, Reply
from fedrag.federated.exchange import Packed, unpack
from fedrag.federated.plan import Plan
from fedrag.federated.strategies.strategy import Member, Update
from fedrag.federated.trainable import State

_LARGEST = 2.0**53  # whole numbers are exact up to here


def told(reply: Reply) -> str | None:
    """What a site says went wrong, in our own words; `None` where nothing did."""
    fault = reply.config.get("fault")
    return None if fault is None else FAULTS.get(str(fault), "it failed and gave a code that nobody knows")


def screened(reply: Reply, member: Member, sent: Mapping[str, Packed], plan: Plan) -> Update:
    """The reply as an update. Raises `InputError` with the reason where it cannot be used.

    Args:
        reply: from another process: nothing in it is taken on trust.
        member: what the site told at the start.
        sent: what it was given.
        plan: its weighting and its largest norm.
    """
    if (fault := told(reply)) is not None:
        raise InputError(fault)
    if reply.config.get("site") != member.site:
        raise InputError("it answers under another name than at the start")
    if list(reply.state) != list(sent):
        odd = sorted(set(reply.state) ^ set(sent))
        raise InputError(f"its parameter names differ: {odd[0]!r}" if odd else "its parameters come in another order")
    for name, packed in reply.state.items():
        if (packed.shape, packed.dtype) != (sent[name].shape, sent[name].dtype):
            raise InputError(
                f"{name!r} is {packed.shape} of {packed.dtype}, not {sent[name].shape} of {sent[name].dtype}"
            )
    state = unpack(reply.state)
    if bad := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise InputError(f"{bad[0]!r} holds numbers that are not finite")
    examples = reply.metrics.get("num-examples", math.nan)
    if not 0 < examples <= _LARGEST:
        raise InputError(f"its number of examples is {examples}")
    if plan.max_norm is not None and (norm := distance(state, unpack(sent))) > plan.max_norm:
        raise InputError(f"its change has the norm {norm:.3g}, above max_norm = {plan.max_norm:g}")
    return Update(member, state, examples if plan.weighting == "examples" else 1.0, dict(reply.metrics))


def distance(state: State, other: State) -> float:
    """The L2 norm of the difference of two states, in float64."""
    return math.sqrt(
        sum(float((value.double() - other[name].double()).square().sum()) for name, value in state.items())
    )
