"""Libraries that come with an extra: what is said when one is not there."""

from __future__ import annotations

from importlib.util import find_spec

from fedrag.errors import MissingExtraError


def require(module: str, *, extra: str) -> None:
    """Raise `MissingExtraError`, which names the extra to install, unless the library `module` is installed.

    It is looked for, not imported.
    """
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # of the package around it
        found = None
    if found is None:
        raise MissingExtraError(f"{module} is not installed; install it with: pip install 'fedrag[{extra}]'")
