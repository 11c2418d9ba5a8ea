"""Asking the sites: who is there, a request to each, and the replies as they come, until the time is over.

In a network all sites work at once, and `timeout` is that of all; in this process they work one after another, and it
is that of each.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedrag.errors import InputError, QuorumError, TrainingError
from fedrag.federated.client import Reply, Request
from fedrag.federated.engines.local import LocalGrid
from fedrag.federated.messages import read_reply, request_message

_POLL = 0.5  # seconds between looks at a network


def await_nodes(grid: Grid, quorum: int, timeout: float) -> list[int]:
    """The nodes that are there, once they are enough. `QuorumError` when they are not within `timeout` seconds."""
    end = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < quorum:
        if time.monotonic() > end:
            raise QuorumError(
                f"{len(nodes)} sites are there after {timeout:g} s, the plan's quorum is {quorum}: start the missing "
                "ones, or lower Plan(quorum=...)"
            )
        time.sleep(_POLL)
    return nodes


def await_others(grid: Grid, known: Collection[int], end: float) -> bool:
    """Whether a node that is not known comes before the clock is at `end`; in this process nobody comes."""
    while not isinstance(grid, LocalGrid) and time.monotonic() < end:
        if set(grid.get_node_ids()) - set(known):
            return True
        time.sleep(_POLL)
    return False


def ask(grid: Grid, requests: Mapping[int, Request], timeout: float) -> Generator[tuple[int, Reply | str]]:
    """Ask nodes; yield each one's reply, or why there is none to read. Nodes that are silent are left out.

    Raises `TrainingError` when the server took none of the messages.
    """
    local = isinstance(grid, LocalGrid)
    if not requests:
        return
    messages = [request_message(request, node, None if local else timeout) for node, request in requests.items()]
    ids = list(grid.push_messages(messages))
    if not any(ids):
        raise TrainingError(
            f"none of {len(messages)} messages was taken: the server, or a proxy before it, refuses them; look at its "
            "limit on the size of a body"
        )
    node_of: dict[str, int] = {}
    for name, node in zip(ids, requests, strict=True):
        if name:
            node_of[name] = node
        else:
            yield node, "the server took no message for it: its node has gone"
    end = time.monotonic() + timeout
    while node_of and (local or time.monotonic() < end):
        began = time.monotonic()
        replies = list(grid.pull_messages(list(node_of)))
        for reply in replies:
            # an error that the server writes for a dead site bears the server's id: only the message it answers tells
            node = node_of.pop(reply.metadata.reply_to_message_id, None)
            expired = reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE  # a moment before `end`
            if node is None or expired:
                continue
            late = local and time.monotonic() - began > timeout
            yield node, f"it took more than {timeout:g} s" if late else _read(reply)
        if local and not replies:
            return  # what is left was lost
        if not replies:
            time.sleep(_POLL)


def _read(message: Message) -> Reply | str:
    if message.has_error():
        return f"no reply (Flower's error {message.error.code})"  # its text may come from the site
    try:
        return read_reply(message)
    except InputError as error:
        return f"a reply that cannot be read: {error}"
