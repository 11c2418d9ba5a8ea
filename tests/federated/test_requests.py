"""What a site makes of a request: no other form is taken, each parameter is known by name, the personal stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from federating import RUN, Walker, asked, participant, read, same
from fedrag.federated import Site
from fedrag.federated.client import Participant, Request
from fedrag.federated.exchange import pack, unpack
from fedrag.federated.kept import Kept


@pytest.mark.parametrize(
    "config",
    [{"run": "../../outside12"}, {"run": "0123456789abcde/"}, {"run": "x"}, {"run": 3}, {"run": RUN + "\n"}],
)
@pytest.mark.parametrize("kind", ["hello", "train", "close"])
def test_a_run_cannot_lead_out_of_the_folder(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    site = participant(site=Site("north", state=tmp_path / "in" / "state"), personal=["own/*"])
    request = asked(site, kind)
    reply = site.answer(Request(kind, {**request.config, **config}, request.state))
    assert reply.config["fault"] == "request"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_malformed_request_is_told_so() -> None:
    site = participant()
    good = asked(site)
    for config in ({"round": 3}, {"round": -1}, {"round": True}, {"round": "0"}, {"round": 0.0}):
        assert site.answer(Request("train", {**good.config, **config}, good.state)).config["fault"] == "request"
    assert site.answer(Request("TRAIN", good.config, good.state)).config["fault"] == "request"
    other = site.answer(Request("train", {**good.config, "fingerprint": "other"}, good.state))
    assert other.config["fault"] == "fingerprint"
    for state in ({}, {**good.state, "more": good.state["w"]}, {**good.state, "w": good.state["b"]}):
        assert site.answer(Request("train", good.config, state)).config["fault"] == "state"
    assert "fault" not in site.answer(good).config


def test_a_state_is_known_by_its_names() -> None:
    seen: list[Walker] = []

    def build(site: Site) -> Walker:
        seen.append(Walker(site))
        seen[-1].state["b"] = torch.zeros(3)  # of the same shape as `w`
        return seen[-1]

    site = participant(build)
    request = asked(site, "close")
    values = {"w": torch.ones(3), "b": torch.zeros(3), "own/head": torch.zeros(2)}
    for order in (["w", "b", "own/head"], ["own/head", "b", "w"]):
        reply = site.answer(Request("close", request.config, pack({name: values[name] for name in order})))
        assert "fault" not in reply.config
        assert same(seen[0].state, values)


def test_what_is_personal_stays_and_comes_back() -> None:
    site = participant(personal=["own/*"])
    request = asked(site)
    assert list(request.state) == ["w", "b"]
    sent = pack({"w": torch.ones(3), "b": torch.ones(1)})
    first, again, second = (
        site.answer(Request("train", {**request.config, "round": round}, sent)) for round in (0, 1, 1)
    )
    assert list(first.state) == ["w", "b"]
    heads = [unpack(Kept(site.site, RUN).own(round) or {}).get("own/head") for round in (0, 1, 2)]
    assert heads[0] is None
    assert not torch.equal(heads[1], heads[2])
    assert again.state == second.state  # a round that comes twice starts where it started
    fresh = Participant(Walker, site.plan, site.site)  # a process of its own, at the same place
    assert fresh.answer(Request("train", {**request.config, "round": 1}, sent)).state == again.state
    fresh.answer(Request("close", request.config, sent))
    final = unpack(read(site.site.state / RUN / "final.safetensors"))
    assert torch.equal(final["w"], torch.ones(3))
    assert torch.equal(final["own/head"], heads[2])


def test_what_is_kept_at_the_site_is_its_owners_alone() -> None:
    site = participant(personal=["own/*"], keep_optimizer=True)
    site.answer(asked(site))
    folder = site.site.state / RUN
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {"own.safetensors", "optimizer.pt"}
