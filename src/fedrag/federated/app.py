"""The task as Flower's pair of apps: what every engine, in this process or deployed, runs.

A client app is made of a function that finds the site from the node's configuration; a server app runs the rounds and
hands over what came out. Neither loads torch before a message comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedrag.federated.client import Reply, Request
from fedrag.federated.messages import read_request, reply_message
from fedrag.federated.plan import Plan

if TYPE_CHECKING:
    from fedrag.federated.checkpoint import Run
    from fedrag.federated.history import Round

_log = logging.getLogger("fedrag.site")

Node = Mapping[str, str | int | float | bool]
"""A node's configuration."""


def client_app(answer: Callable[[Node, Request], Reply]) -> ClientApp:
    """The app that answers at a site, which it is told by its node's configuration."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        try:
            reply = answer(context.node_config, read_request(message))
        except Exception as error:  # what passed on would leave the site with its text, in Flower's own reply
            _log.exception("this site cannot answer")
            reply = Reply({"fault": "site", "class": type(error).__name__[:64]})
        return reply_message(reply, message)

    app.query()(handle)
    app.train()(handle)
    app.evaluate()(handle)
    return app


def server_app(
    plan: Plan,
    *,
    resume: Callable[[Context], Run | None],
    on_round: Callable[[Round], None],
    over: Callable[[Run], None],
) -> ServerApp:
    """The app that runs the rounds, from what `resume` finds, and gives the run to `over`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        from fedrag.federated.rounds import Rounds

        over(Rounds(grid, plan, on_round).run(resume(context)))

    return app
