"""The task as Flower's pair of apps."""

import logging

import pytest

from fedrag.errors import ConfigError, QuorumError
from fedrag.federated.app import client_app, server_app
from fedrag.federated.engines.local import run_local
from fedrag.federated.plan import Plan

SECRET = "the ward of bed 7"


def test_what_fails_before_the_site_is_known_leaves_as_a_code(caplog):
    def answer(node, request):
        raise ConfigError(SECRET)

    plan = Plan(rounds=1)
    server = server_app(plan, resume=lambda _: None, on_round=lambda _: None, over=lambda _: None)
    with caplog.at_level(logging.INFO), pytest.raises(QuorumError, match=r"site\.toml, cannot be read") as caught:
        run_local(server, client_app(answer), [{"site": "north"}])
    assert SECRET not in str(caught.value)
    assert {record.name for record in caplog.records if SECRET in (record.exc_text or "")} == {"fedrag.site"}


def test_an_interrupt_passes():
    def answer(node, request):
        raise KeyboardInterrupt

    server = server_app(Plan(rounds=1), resume=lambda _: None, on_round=lambda _: None, over=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        run_local(server, client_app(answer), [{"site": "north"}])
