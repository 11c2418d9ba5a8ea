"""Who takes part: sites are met with a "hello", and known by name from then on.

Node ids are Flower's and change when a site restarts; names do not. A site that joins later is met when it comes, and
one that was gone is met again.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping

from fedrag.errors import InputError
from fedrag.federated.checkpoint import Run
from fedrag.federated.client import Reply
from fedrag.federated.exchange import size, unpack
from fedrag.federated.plan import Plan
from fedrag.federated.screening import told
from fedrag.federated.strategies.strategy import Member

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Roster:
    """The sites that take part, by node, and why others do not."""

    def __init__(self, plan: Plan, *, ranks: bool) -> None:
        self.plan = plan
        self.ranks = ranks
        self.members: dict[int, Member] = {}
        self.absent: dict[str, str] = {}

    def begin(self, run: Run, replies: Mapping[int, Reply | str]) -> None:
        """Start a run from what the sites tell: the fingerprint that most have, and the state of the first by name.

        Where ranks may differ it is the first among the largest, of which the others get their share.
        """
        ready: dict[int, Reply] = {}
        for node, reply in replies.items():
            try:
                member = _member(reply)
                ready[node] = reply if isinstance(reply, Reply) else Reply({})
                self.members[node] = member
            except InputError as error:
                self._leave_out(node, _name(reply), str(error))
        if not ready:
            return
        order = sorted(ready, key=lambda node: self.members[node].site)
        votes = Counter(str(ready[node].config["fingerprint"]) for node in order)
        run.fingerprint = votes.most_common(1)[0][0]  # of equally many, the first that was counted
        agreed = [node for node in order if ready[node].config["fingerprint"] == run.fingerprint]
        source = max(agreed, key=lambda node: size(ready[node].state) if self.ranks else 0)
        run.state = unpack(ready[source].state)
        if self.plan.precision != "keep":
            run.state = {name: value.float() for name, value in run.state.items()}
        self.members = {}
        self.admit(run, {node: ready[node] for node in order})

    def admit(self, run: Run, replies: Mapping[int, Reply | str]) -> None:
        """Take in the sites that fit the run."""
        for node, reply in replies.items():
            try:
                member = _member(reply)
                if any(other.site == member.site for other in self.members.values()):
                    raise InputError("another site has this name")
                if isinstance(reply, Reply) and reply.config["fingerprint"] != run.fingerprint:
                    raise InputError(
                        "its base model, parameter names, adapters or plan are not those of the other sites"
                    )
                _fits(member, run, ranks=self.ranks)
            except InputError as error:
                self._leave_out(node, _name(reply), str(error))
            else:
                self.members[node] = member
                self.absent.pop(member.site, None)

    def online(self, nodes: list[int]) -> list[int]:
        """Forget members that are gone; return the nodes that are new."""
        self.members = {node: member for node, member in self.members.items() if node in nodes}
        return [node for node in nodes if node not in self.members]

    def by_name(self) -> list[int]:
        """The members' nodes, in the order of their names."""
        return sorted(self.members, key=lambda node: self.members[node].site)

    def _leave_out(self, node: int, name: str, why: str) -> None:
        self.absent[name or f"node {node}"] = why
        _log.warning("%s cannot take part: %s", name or f"node {node}", why)


def _member(reply: Reply | str) -> Member:
    """What a site tells of itself. Raises `InputError` with the reason where it cannot be used."""
    if isinstance(reply, str):
        raise InputError(reply)
    if (fault := told(reply)) is not None:
        raise InputError(fault)
    if not _name(reply) or not isinstance(reply.config.get("fingerprint"), str) or not reply.state:
        raise InputError("its hello has no name, no fingerprint or no state")
    try:
        scales = {str(name): float(value) for name, value in json.loads(str(reply.config.get("scales", "{}"))).items()}
    except (ValueError, TypeError, AttributeError):
        raise InputError("its scales of LoRA pairs cannot be read") from None
    return Member(_name(reply), {name: packed.shape for name, packed in reply.state.items()}, scales)


def _fits(member: Member, run: Run, *, ranks: bool) -> None:
    shapes = {name: tuple(value.shape) for name, value in run.state.items()}
    if list(member.shapes) != list(shapes):
        odd = sorted(set(member.shapes) ^ set(shapes))
        raise InputError(f"its parameter names differ: {odd[0]!r}" if odd else "its parameters come in another order")
    for name, shape in shapes.items():
        if member.shapes[name] != shape and not (ranks and ".lora_" in name):
            raise InputError(f"{name!r} is {member.shapes[name]} there and {shape} elsewhere")


def _name(reply: Reply | str) -> str:
    name = reply.config.get("site") if isinstance(reply, Reply) else None
    return name if isinstance(name, str) and _NAME.fullmatch(name) else ""
