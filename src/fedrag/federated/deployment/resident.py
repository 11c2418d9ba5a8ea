"""Start a resident worker: load a task file, and serve its participant at this site.

    python -m fedrag.federated.deployment.resident task.py site.toml

What it serves, and how, is in `worker`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from fedrag.errors import FedRAGError
from fedrag.federated.deployment.project import load_task
from fedrag.federated.deployment.worker import NAME, serve
from fedrag.federated.site import Site


def reside(task_file: Path, site_file: Path, *, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or Ctrl-C; the trainer is built when the first request comes, and kept."""
    site = Site.open(site_file)
    path = site.state / NAME
    serve(load_task(task_file).participant(site), path, ready=lambda: say(f"site {site.name}: worker at {path}"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        reside(Path(sys.argv[1]), Path(sys.argv[2]))
    except FedRAGError as error:
        sys.exit(f"fedrag: {error}")
