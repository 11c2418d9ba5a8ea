"""Requests and replies as messages: what is written is read, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st

from fedrag.errors import InputError
from fedrag.federated.client import Reply, Request
from fedrag.federated.engines.local import identity
from fedrag.federated.exchange import pack
from fedrag.federated.messages import read_reply, read_request, reply_message, request_message

STATE = pack({"w": torch.randn(2, 3), "h": torch.randn(2).to(torch.bfloat16)})
REQUEST = Request("train", {"run": "0123456789abcdef", "fingerprint": "f", "round": 2}, STATE)
REPLY = Reply({"site": "north", "fingerprint": "f"}, {"num-examples": 3.0, "train_loss": 0.25}, STATE)


@pytest.fixture(autouse=True)
def _server():
    with identity(1):
        yield


def sent(message: Message) -> Message:
    """What arrives on the other side of a network."""
    message.metadata.__dict__["_message_id"] = "m"
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    return arrived


@pytest.mark.parametrize(("kind", "carried"), [("hello", "query"), ("train", "train"), ("close", "evaluate")])
def test_a_request_arrives_as_it_was_sent(kind: str, carried: str) -> None:
    request = Request(kind, REQUEST.config, STATE)
    message = request_message(request, 7, ttl=12.5)
    assert (message.metadata.message_type, message.metadata.dst_node_id, message.metadata.ttl) == (carried, 7, 12.5)
    assert read_request(sent(message)) == request


def test_a_reply_arrives_as_it_was_sent() -> None:
    asked = sent(request_message(REQUEST, 7))
    asked.metadata.__dict__["_message_id"] = "asked"
    answer = sent(reply_message(REPLY, asked))
    assert read_reply(answer) == REPLY
    assert answer.metadata.reply_to_message_id == "asked"


def holding(**records: Any) -> Message:
    return Message(RecordDict(records), 7, "train")


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ({"extra": ConfigRecord({"a": 1})}, "the record 'extra'"),
        ({"arrays": ArrayRecord(), "notes": MetricRecord()}, "the record 'notes'"),
        ({"arrays": MetricRecord({"a": 1.0})}, "the record 'arrays'"),
        ({"config": ArrayRecord()}, "the record 'config'"),
        ({"config": ConfigRecord({"rows": [1, 2]})}, "the word 'rows' of a message is no scalar"),
        ({"config": ConfigRecord({"raw": b"x"})}, "the word 'raw' of a message is no scalar"),
        ({"metrics": MetricRecord({"losses": [1.0]})}, "the number 'losses' of a message is a list"),
    ],
)
def test_a_message_of_another_form_is_refused(records: dict[str, Any], complaint: str) -> None:
    for read in (read_request, read_reply):
        with pytest.raises(InputError, match=complaint):
            read(sent(holding(**records)))


def test_records_that_lack_are_empty() -> None:
    assert read_reply(holding()) == Reply({}, {}, {})
    assert read_request(holding()) == Request("", {}, {})


SCALARS = st.one_of(st.text(min_size=1, max_size=5), st.integers(-(2**60), 2**60), st.floats(), st.booleans())
NAMES = st.text(max_size=6)


@given(
    st.dictionaries(NAMES, SCALARS, max_size=3),
    st.dictionaries(NAMES, st.one_of(st.floats(), st.lists(st.floats(), max_size=2)), max_size=3),
    st.dictionaries(st.sampled_from(["arrays", "config", "metrics", "x"]), st.integers(0, 2), max_size=3),
)
def test_any_records_are_read_or_refused(words: Any, numbers: Any, places: dict[str, int]) -> None:
    kinds = (ArrayRecord(), ConfigRecord(words), MetricRecord(numbers))
    message = holding(**{name: kinds[kind] for name, kind in places.items()})
    try:
        reply = read_reply(message)
    except InputError:
        return
    assert set(places) <= {"arrays", "config", "metrics"}
    assert all(isinstance(value, str | int | float) for value in (*reply.config.values(), *reply.metrics.values()))
