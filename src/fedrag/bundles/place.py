"""Where the parts of a saved system lie: in the version in use of a folder that was saved, or in the folder itself.

A repository that was pushed holds the parts alone; cloned or downloaded by any means, it is a system as it stands.
"""

from __future__ import annotations

from pathlib import Path

from fedrag import durable

FILE = "fedrag.json"
"""The settings, which make a folder a system."""


def parts_in(system: Path) -> Path:
    """Return the folder that holds the parts. Raises `StoreError` where there is no system."""
    return system if (system / FILE).is_file() else durable.current(system)
