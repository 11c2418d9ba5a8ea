"""The command `fedrag`, as a process: a mistake is one line, an exit code, and no traceback."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from fedrag.cli.app import app
from fedrag.errors import FedRAGError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr, not a traceback."""
    _quieten()
    try:
        app()
    except FedRAGError as error:
        sys.exit(f"fedrag: {error}")


def _quieten() -> None:
    """Leave out what other libraries say to programmers, and bars that nothing can draw."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's concern
    kernels = logging.getLogger("transformers.integrations.hub_kernels")
    kernels.addFilter(lambda record: "reference PyTorch implementation" not in record.getMessage())
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too
