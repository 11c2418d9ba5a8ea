"""The command `fedrag`: quickstart, index, ask, train, evaluate."""

from __future__ import annotations

import sys

from fedrag.cli.app import app
from fedrag.errors import FedRAGError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr, not a traceback."""
    try:
        app()
    except FedRAGError as error:
        sys.exit(f"fedrag: {error}")
