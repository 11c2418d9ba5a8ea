"""One cell of a grid, a regime with a seed: how every question went, what the training cost, and the file of both.

The file holds no text: a question is the hash of itself and its answers, which is enough to pair the questions of two
regimes, and every metric is one list of numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedrag.durable import replace_text
from fedrag.errors import ConfigError, DataError
from fedrag.evaluation import Record, Report
from fedrag.types import Example

FORMAT = 1
CLUSTER = "cluster"
"""The metadata key of a record's example that tells what it is resampled with."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cell took: seconds of CPU and of wall time for training, of CPU for measuring, and memory in GiB.

    `start_gib` was resident before training (the libraries, the untrained system); `peak_gib` is the most in training.
    """

    cpu_seconds: float
    wall_seconds: float
    measure_seconds: float
    start_gib: float
    peak_gib: float


@dataclass(frozen=True, slots=True)
class Cell:
    """A record per question by setting, without texts, and the cost."""

    records: Mapping[str, Sequence[Record]] = field(repr=False)
    cost: Cost


def cell_path(folder: Path, regime: str, seed: int) -> Path:
    """Return the file of a cell: the regime's name in small letters and digits, and the seed."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', regime.lower()).strip('-')}-{seed}.json"


def write_cell(path: Path, reports: Mapping[str, Report], cost: Cost, about: Mapping[str, Any]) -> None:
    """Write a cell into its file, in one atomic step; `about` is what must be the same when it is read."""
    content = {
        "format": FORMAT,
        "settings_hash": settings_hash(about),
        "about": about,
        "cost": asdict(cost),
        "settings": {setting: _columns(report) for setting, report in reports.items()},
    }
    replace_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def read_cell(path: Path, about: Mapping[str, Any]) -> Cell:
    """Read what `write_cell` wrote.

    Raises:
        ConfigError: if the cell was made with other settings; names those that differ.
        DataError: if the file holds anything else.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        made, same = dict(content["about"]), content["settings_hash"] == settings_hash(about)
        if not same:
            now = json.loads(json.dumps(about, default=repr))
            differ = sorted(key for key in {*made, *now} if made.get(key) != now.get(key))
            raise ConfigError(
                f"{path} was made with other settings than those asked for now; what differs: "
                f"{', '.join(differ) or 'the format'}. Give another folder, or remove that file to run the cell again"
            )
        return Cell({s: _records(columns) for s, columns in content["settings"].items()}, Cost(**content["cost"]))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(
            f"{path} is no cell of an ablation ({type(error).__name__}); remove it to run it again"
        ) from None


def settings_hash(about: Mapping[str, Any]) -> str:
    """Return a short hash of plain values, the same for the same values in any order of keys."""
    return _digest(json.dumps({**about, "format": FORMAT}, sort_keys=True, default=repr))


def questions_hash(examples: Sequence[Example]) -> str:
    """Return a short hash of what is asked, in order."""
    return _digest(" ".join(map(_question, examples)))


def memory() -> tuple[float, float]:
    """Return what this process holds now and what it held at most since `forget_peak`, in GiB.

    Where there is no /proc (macOS), both are the most since the process began.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, most = (int(fields[name].split()[0]) / 2**20 for name in ("VmRSS", "VmHWM"))
        return now, most
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return most, most


def forget_peak() -> None:
    """Let the peak of `memory` begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _columns(report: Report) -> dict[str, Any]:
    examples = [record.example for record in report.records]
    names = dict.fromkeys(name for record in report.records for name in record.values)
    return {
        "questions": list(map(_question, examples)),
        "clusters": None if report.cluster is None else [example.metadata[report.cluster] for example in examples],
        "values": {
            name: [round(record.values[name], 6) if name in record.values else None for record in report.records]
            for name in names
        },
    }


def _records(columns: Mapping[str, Any]) -> list[Record]:
    clusters: Sequence[Any] = columns["clusters"] or [None] * len(columns["questions"])
    rows = zip(*columns["values"].values(), strict=True)
    return [
        Record(
            Example(question, metadata={} if cluster is None else {CLUSTER: cluster}),
            {name: value for name, value in zip(columns["values"], row, strict=True) if value is not None},
        )
        for question, cluster, row in zip(columns["questions"], clusters, rows, strict=True)
    ]


def _question(example: Example) -> str:
    return _digest(json.dumps([example.question, example.answers, example.positives]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
