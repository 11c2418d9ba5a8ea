"""Requests and replies as Flower's messages: three records of fixed names, and nothing else is read or written.

`arrays` holds the state, `config` words and whole numbers, `metrics` numbers. What comes from another process is
checked here for its form; what it says is checked in `screening`.
"""

from __future__ import annotations

from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedrag.errors import InputError
from fedrag.federated.client import Reply, Request, Scalar
from fedrag.federated.exchange import from_record, to_record

TYPES = {"hello": "query", "train": "train", "close": "evaluate"}
"""What we ask, and the type of Flower's message that carries it."""

_RECORDS = {"arrays": ArrayRecord, "config": ConfigRecord, "metrics": MetricRecord}


def request_message(request: Request, node: int, ttl: float | None = None) -> Message:
    """The message that asks a node; it is dropped unread after `ttl` seconds."""
    config = ConfigRecord({"kind": request.kind, **request.config})
    content = RecordDict({"arrays": to_record(request.state), "config": config})
    return Message(content, node, TYPES[request.kind], ttl=ttl)


def read_request(message: Message) -> Request:
    """What a site is asked. Raises `InputError` for a message that `request_message` did not write."""
    config, _ = _words(message.content)
    return Request(str(config.pop("kind", "")), config, from_record(_arrays(message.content)))


def reply_message(reply: Reply, asked: Message) -> Message:
    """The message that answers."""
    content = RecordDict(
        {
            "arrays": to_record(reply.state),
            "config": ConfigRecord(dict(reply.config)),
            "metrics": MetricRecord(dict(reply.metrics)),
        }
    )
    return Message(content, reply_to=asked)


def read_reply(message: Message) -> Reply:
    """What a site answers. Raises `InputError` for anything but the three records."""
    config, metrics = _words(message.content)
    return Reply(config, metrics, from_record(_arrays(message.content)))


def _arrays(content: RecordDict) -> ArrayRecord:
    return cast(ArrayRecord, content.get("arrays", ArrayRecord()))


def _words(content: RecordDict) -> tuple[dict[str, Scalar], dict[str, float]]:
    for name, record in content.items():
        if type(record) is not _RECORDS.get(name):
            raise InputError(f"a message holds the record {name!r}; it may hold {', '.join(_RECORDS)} alone")
    config = dict(cast(ConfigRecord, content.get("config", ConfigRecord())))
    metrics = dict(cast(MetricRecord, content.get("metrics", MetricRecord())))
    if odd := [name for name, value in config.items() if not isinstance(value, str | int | float | bool)]:
        raise InputError(f"the word {odd[0]!r} of a message is no scalar")
    if odd := [name for name, value in metrics.items() if not isinstance(value, int | float)]:
        raise InputError(f"the number {odd[0]!r} of a message is a list")
    return cast(dict[str, Scalar], config), cast(dict[str, float], metrics)
