"""What carries messages between server and sites: this process (`local`), Ray actors (`ray`).

Both run the same pair of Flower apps that a deployment runs. An engine is a `flwr.serverapp.Grid`: messages in, replies
out, a list of nodes.
"""

from __future__ import annotations

from fedrag.optional import require

require("flwr", extra="federated")  # here, so that every engine may import it plainly at the top of its file
