"""What happened, round by round and site by site: plain numbers, which go to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SiteRound:
    """A site's reply that was used: its examples and its numbers."""

    examples: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Attributes:
        number: from 0; the closing round, which trains nothing, has the number of the plan's rounds.
        sites: the replies that were used, by site.
        rejected: sites whose reply was left out, and why.
        silent: sites that gave none in time.
        metrics: the sites' numbers, averaged with their examples as weights, and the strategy's own.
        bytes_down: bytes of the numbers that went to the sites.
        bytes_up: bytes of the numbers that came from them; not what a site shows of its state when it is met.
        seconds: from the first message to the new state.
    """

    number: int
    sites: Mapping[str, SiteRound]
    rejected: Mapping[str, str]
    silent: tuple[str, ...]
    metrics: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    seconds: float

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Round:
        """What `asdict` made."""
        sites = {name: SiteRound(**site) for name, site in row["sites"].items()}
        fields: dict[str, Any] = {**row, "sites": sites, "silent": tuple(row["silent"])}
        return cls(**fields)


@dataclass(slots=True)
class History:
    """A run's rounds, in order; `closing` measures the final state."""

    rounds: list[Round] = field(default_factory=list[Round])
    closing: Round | None = None

    def curve(self, metric: str) -> list[float]:
        """A number over the rounds, the closing one included; rounds without it are left out."""
        rows = [*self.rounds, *([self.closing] if self.closing else [])]
        return [row.metrics[metric] for row in rows if metric in row.metrics]

    def site_curve(self, site: str, metric: str) -> list[float]:
        """The same for one site."""
        rows = [*self.rounds, *([self.closing] if self.closing else [])]
        return [
            row.sites[site].metrics[metric] for row in rows if site in row.sites and metric in row.sites[site].metrics
        ]

    @property
    def bytes(self) -> int:
        """Bytes of arrays that travelled, both ways."""
        return sum(row.bytes_down + row.bytes_up for row in [*self.rounds, *([self.closing] if self.closing else [])])

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "rounds": [asdict(row) for row in self.rounds],
            "closing": asdict(self.closing) if self.closing else None,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> History:
        """From a file."""
        closing = Round.from_json(found["closing"]) if found["closing"] else None
        return cls([Round.from_json(row) for row in found["rounds"]], closing)


def averaged(sites: Mapping[str, SiteRound]) -> dict[str, float]:
    """The sites' numbers, each averaged over the sites that have it, with their examples as weights."""
    names = dict.fromkeys(name for site in sites.values() for name in site.metrics if name != "num-examples")
    means: dict[str, float] = {}
    for name in names:
        having = [site for site in sites.values() if name in site.metrics]
        total = sum(site.examples for site in having)
        if total:
            means[name] = sum(site.examples * site.metrics[name] for site in having) / total
    return means
