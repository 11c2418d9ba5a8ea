"""Who takes part: sites are met with a "hello", and known by name from then on.

Node ids are Flower's and change when a site restarts; names do not. A site that joins later is met when it comes, and
one that was gone is met again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedrag.errors import InputError
from fedrag.federated.checkpoint import Run
from fedrag.federated.client import FAULTS, Reply
from fedrag.federated.exchange import Packs, size, unpack
from fedrag.federated.plan import Plan
from fedrag.federated.screening import finite, same_names, told
from fedrag.federated.site import is_name
from fedrag.federated.strategies.strategy import Member

_log = logging.getLogger(__name__)


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
        self.members = {}
        self.absent = {}
        hellos = self._read(replies)
        voters: dict[str, _Hello] = {}
        for hello in hellos.values():
            voters.setdefault(hello.member.site, hello)
        if voters:
            order = [voters[site] for site in sorted(voters)]
            votes = Counter(hello.fingerprint for hello in order)
            run.fingerprint = votes.most_common(1)[0][0]  # of equally many, the first that was counted
            agreed = [hello for hello in order if hello.fingerprint == run.fingerprint]
            source = max(agreed, key=lambda hello: size(hello.state) if self.ranks else 0)
            run.state = unpack(source.state)
            if self.plan.precision != "keep":  # between rounds the server keeps what 16 bits would lose
                run.state = {name: v.float() if v.dtype == torch.bfloat16 else v for name, v in run.state.items()}
            self._take_in(run, hellos)

    def admit(self, run: Run, replies: Mapping[int, Reply | str]) -> None:
        """Take in the sites that fit the run."""
        self._take_in(run, self._read(replies))

    def online(self, nodes: list[int]) -> list[int]:
        """Forget members that are gone; return the nodes that are new."""
        self.members = {node: member for node, member in self.members.items() if node in nodes}
        return [node for node in nodes if node not in self.members]

    def by_name(self) -> list[int]:
        """The members' nodes, in the order of their names."""
        return sorted(self.members, key=lambda node: self.members[node].site)

    def _read(self, replies: Mapping[int, Reply | str]) -> dict[int, _Hello]:
        hellos: dict[int, _Hello] = {}
        for node, reply in replies.items():
            try:
                hellos[node] = _hello(reply)
            except InputError as error:
                self._leave_out(_name(reply) or f"node {node}", str(error))
        return hellos

    def _take_in(self, run: Run, hellos: Mapping[int, _Hello]) -> None:
        for node, hello in hellos.items():
            site = hello.member.site
            try:
                if any(other.site == site for other in self.members.values()):
                    raise InputError("another site has this name")
                if hello.fingerprint != run.fingerprint:
                    raise InputError(FAULTS["fingerprint"])
                _fits(hello.member, run, ranks=self.ranks)
            except InputError as error:
                self._leave_out(site, str(error))
            else:
                self.members[node] = hello.member
                self.absent.pop(site, None)

    def _leave_out(self, name: str, why: str) -> None:
        self.absent[name] = why
        _log.warning("%s cannot take part: %s", name, why)


@dataclass(frozen=True, slots=True)
class _Hello:
    member: Member
    fingerprint: str
    state: Packs


def _hello(reply: Reply | str) -> _Hello:
    """What a site tells of itself. Raises `InputError` with the reason where it cannot be used."""
    if isinstance(reply, str):
        raise InputError(reply)
    if (fault := told(reply)) is not None:
        raise InputError(fault)
    fingerprint = reply.config.get("fingerprint")
    if not _name(reply) or not isinstance(fingerprint, str) or not fingerprint or not reply.state:
        raise InputError("its hello has no name, no fingerprint or no state")
    try:
        scales = {str(name): float(value) for name, value in json.loads(str(reply.config.get("scales", "{}"))).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InputError("its scales of LoRA pairs cannot be read") from None
    finite(unpack(reply.state))
    shapes = {name: packed.shape for name, packed in reply.state.items()}
    return _Hello(Member(_name(reply), shapes, scales), fingerprint, reply.state)


def _fits(member: Member, run: Run, *, ranks: bool) -> None:
    same_names(member.shapes, run.state)
    for name, value in run.state.items():
        shape = tuple(value.shape)
        if member.shapes[name] != shape and not (ranks and ".lora_" in name):
            raise InputError(f"{name!r} is {member.shapes[name]} there and {shape} elsewhere")


def _name(reply: Reply | str) -> str:
    name = reply.config.get("site") if isinstance(reply, Reply) else None
    return str(name) if is_name(name) else ""
