"""A whole federation in this process: no Ray, no network, nothing to install but Flower.

Flower ships no engine without Ray, yet its `Grid` (where a server app sends and receives) is a public interface.
`LocalGrid` is one that runs the client app itself, site after site: threads would share torch's random numbers.

It is as strict as a network where that is cheap. Each message is a copy, so that no site sees what another did to its
own; a site's context outlives the message and is that site's alone; an exception at a site becomes an error reply with
the exception's class and none of its text. It is lazy where a network cannot be: a message is carried out when its
reply is asked for, so that a server which folds replies as they arrive holds one at a time.

>>> from flwr.app import Message, MetricRecord, RecordDict
>>> server, client = ServerApp(), ClientApp()
>>> @client.query()
... def tell(message, context):
...     return Message(RecordDict({"told": MetricRecord({"rows": context.node_config["rows"]})}), reply_to=message)
>>> @server.main()
... def ask(grid, context):
...     asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
...     print([reply.content["told"]["rows"] for reply in grid.send_and_receive(asked)])
>>> grid = run_local(server, client, [{"rows": 30}, {"rows": 12}])
[30, 12]
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from secrets import randbits
from typing import cast
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedrag.errors import InputError, TrainingError

logger = logging.getLogger(__name__)

_running = threading.Lock()


@contextmanager
def identity(run_id: int) -> Generator[None]:
    """Let this process write messages as the server of a run; whoever it was before, it is afterwards.

    Flower keeps who writes a message in class attributes, one set a process. Raises `TrainingError` inside another run.
    """
    if not _running.acquire(blocking=False):
        raise TrainingError(
            "a federated run is going on in this process, and a second one would mix their messages; "
            "wait for the first to end, or start the second in a process of its own"
        )
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)  # pyright: ignore[reportPrivateUsage]
    try:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, 1
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before  # pyright: ignore[reportPrivateUsage]
        _running.release()


class LocalGrid(Grid):
    """Carries messages to a client app in this process; use it inside `identity`, or let `run_local` do both.

    Messages are carried out one after another in the order they were pushed, each when its reply is first pulled.

    Args:
        client_app: what every site runs.
        nodes: the configuration of each node; node ids are given in this order.
        run_id: the run that messages belong to.
        serde: send every message through Flower's own serialisation, to find what only a network would refuse.
        silence: for tests of death: a message for which it is true is lost on the way, with no reply and no error.

    Attributes:
        bytes_down: bytes of arrays in all messages pushed; of numpy arrays with their header of 128 bytes or so.
        bytes_up: bytes of arrays in all replies pulled.
        silent: ids of messages that were lost: nothing is gained by waiting for them.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Sequence[Mapping[str, str | int | float | bool]],
        *,
        run_id: int,
        serde: bool = False,
        silence: Callable[[Message], bool] | None = None,
    ) -> None:
        if not nodes:
            raise InputError("no nodes; a federation in this process wants the configuration of one node at least")
        self._app, self._serde, self._silence = client_app, serde, silence
        self._run = Run.create_empty(run_id)
        self._contexts = {
            node_id: Context(run_id, node_id, dict(node), RecordDict(), {})
            for node_id, node in enumerate(nodes, start=SUPERLINK_NODE_ID + 1)
        }
        self._queue: dict[str, Message] = {}  # by id, in the order pushed
        self.silent: set[str] = set()
        self.bytes_down = self.bytes_up = 0

    def set_run(self, run: Run) -> None:
        """Belong to another run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's old way to write `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Ids of the nodes, in the order of their configurations."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages for later; return their ids, which also the messages have from now on.

        Raises `InputError` for a node that is not there: Flower's own engines drop such a message without a word.
        """
        ids: list[str] = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                raise InputError(
                    f"a message to node {message.metadata.dst_node_id}; nodes are {self.get_node_ids()} (get_node_ids)"
                )
            ids.append(_name(message))
            self._queue[ids[-1]] = sent = self._travel(message)
            self.bytes_down += _array_bytes(sent)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Carry out the first of these messages that still waits and is answered; return its reply.

        One reply or, where the rest are lost, none. Raises `InputError` for ids that were answered before or never
        pushed, which a deployment reports as errors of the sites.
        """
        wanted = set(message_ids)
        if strange := wanted - self._queue.keys() - self.silent:
            raise InputError(
                f"{len(strange)} of {len(wanted)} ids belong to no message that waits for a reply; "
                "ask only for replies that have not come yet"
            )
        for name in [name for name in self._queue if name in wanted]:
            message = self._queue.pop(name)
            if self._silence is not None and self._silence(message):
                self.silent.add(name)
                continue
            reply = self._carry_out(message)
            self.bytes_up += _array_bytes(reply)
            return [reply]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and pull replies, in the same order, until all are there or lost or `timeout` seconds are over.

        Time is looked at between sites; nobody interrupts one.
        """
        end = float("inf") if timeout is None else time.monotonic() + timeout
        missing = dict.fromkeys(self.push_messages(messages))
        replies: list[Message] = []
        while not missing.keys() <= self.silent and time.monotonic() < end:
            for reply in self.pull_messages(missing):
                del missing[reply.metadata.reply_to_message_id]
                replies.append(reply)
        return replies

    def _carry_out(self, message: Message) -> Message:
        if message.metadata.created_at + message.metadata.ttl < time.time():
            return self._travel(Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired"), reply_to=message))
        return self._travel(answer(self._app, message, self._contexts[message.metadata.dst_node_id]))

    def _travel(self, message: Message) -> Message:
        """The message as the other side gets it: a copy, sharing no record with the original."""
        name = message.metadata.message_id
        if self._serde:
            # an object's id is the hash of its serialised form, which leaves out the message's own id
            contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
            arrived = cast(Message, inflate_object_from_contents(message.object_id, contents))
        elif message.has_content():
            arrived = Message(copied(message.content), metadata=message.metadata)  # pyright: ignore[reportCallIssue]
        else:
            arrived = message
        _name(arrived, name)
        return arrived


def run_local(
    server_app: ServerApp,
    client_app: ClientApp,
    nodes: Sequence[Mapping[str, str | int | float | bool]],
    *,
    serde: bool = False,
    silence: Callable[[Message], bool] | None = None,
) -> LocalGrid:
    """Run both apps to the end in this process and return the grid, which has counted bytes.

    `nodes` are the configurations of the nodes; `serde` and `silence` are `LocalGrid`'s. What the server app raises
    comes out as it is; `TrainingError` inside another run.
    """
    run_id = randbits(62)  # from the system: no seed of anybody's is used up
    grid = LocalGrid(client_app, nodes, run_id=run_id, serde=serde, silence=silence)
    with identity(run_id):
        server_app(grid, Context(run_id, SUPERLINK_NODE_ID, {}, RecordDict(), {}))
    return grid


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """What `app` replies; where it raises, an error reply with the exception's class, and the context as it was.

    The exception itself goes to the log of this process, which is the site's.
    """
    state = copied(context.state)
    try:
        reply = cast(object, app(message, context))
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise TypeError(f"the client app returned {type(reply).__name__}; wanted Message(..., reply_to=message)")
    except Exception as error:  # an app is anybody's code: whatever it raises is this site's failure, not the run's
        context.state = state
        logger.exception("the client app raised %s", type(error).__name__)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)
    return reply


def copied(records: RecordDict) -> RecordDict:
    """The same records in new containers; the arrays' bytes, which nobody can change, are shared."""
    fresh = RecordDict()
    for name, record in records.items():
        values = {key: list(value) if isinstance(value, list) else value for key, value in record.items()}
        fresh[name] = type(record)(values)  # pyright: ignore[reportArgumentType]  (an ArrayRecord copies its Arrays)
    return fresh


def _name(message: Message, name: str | None = None) -> str:
    """Give the message an id, a new one by default: the transport's part in Flower, which has no setter for it."""
    message.metadata.__dict__["_message_id"] = name = name or str(uuid4())
    return name


def _array_bytes(message: Message) -> int:
    if not message.has_content():
        return 0
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())
