"""Opening what a command names, and saying in one line when that cannot be."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrag.errors import FedRAGError, InputError

if TYPE_CHECKING:
    from fedrag.rag import RAGSystem

System = Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)]


def open_system(system: Path) -> RAGSystem:
    """Load a saved system. Raises `InputError`, in one line, where it or one of its models cannot be loaded."""
    if not system.is_dir():  # said before the libraries load, which takes seconds
        raise InputError(f"{system}: no such folder; check the path, the working directory is {Path.cwd()}")
    from fedrag.rag import RAGSystem

    with loading(f"the models of {system}"):
        return RAGSystem.load(system)


@contextmanager
def loading(what: str) -> Generator[None]:
    """Say in one line that a model is neither in a folder nor to be had from the hub."""
    from safetensors import SafetensorError

    try:
        yield
    except FedRAGError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        SafetensorError,
    ) as error:  # what libraries raise
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{what} cannot be loaded: pass the folder of a model, or check its name and the connection to the hub "
            f"({type(error).__name__}: {reason})"
        ) from error
