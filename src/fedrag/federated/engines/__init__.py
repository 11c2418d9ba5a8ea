"""What carries messages between server and sites: this process (`local`), Ray actors (`ray`).

Both run the same pair of Flower apps that a deployment runs. An engine is a `flwr.serverapp.Grid`: messages in, replies
out, a list of nodes. `require` says which extra brings a library that is not there.
"""

from __future__ import annotations

from importlib.util import find_spec

from fedrag.errors import MissingExtraError


def require(module: str, *, extra: str) -> None:
    """Raise `MissingExtraError`, which names the extra to install, unless the library `module` is installed.

    It is looked for, not imported.
    """
    if find_spec(module) is None:
        raise MissingExtraError(f"{module} is not installed; install it with: pip install 'fedrag[{extra}]'")


require("flwr", extra="federated")  # here, so that every engine may import it plainly at the top of its file
