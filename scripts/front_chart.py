"""Draw the chart of the documentation's front page from the figures in docs/evidence: dots with 95 % intervals.

The chart is put into the page itself, so that it takes the page's colours, light and dark, and asks for no file:
`docs/assets/before-after.svg` is written anew by this script, and with `--check` compared (exit code 1 if it differs).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "docs" / "assets" / "before-after.svg"
EVIDENCE = REPOSITORY / "docs" / "evidence"

WIDTH, LABELS, RIGHT, ROW = 480, 184, 24, 24  # units of the view box


@dataclass(frozen=True, slots=True)
class Panel:
    """One axis: which figures, of which regimes, under which name; `kinds` tells before, after and reference."""

    title: str
    source: str
    column: str
    rows: tuple[tuple[str, str, str], ...]  # regime in the file, its name in the chart, kind


PANELS = (
    Panel(
        "Invented facts: answers right, end to end",
        "world.json",
        "end to end",
        (
            ("frozen", "before", "before"),
            ("RALT", "reader tuned", "after"),
            ("RALT, then LSR", "reader, then retriever", "after"),
            ("Joint(LSR, RALT)", "both in one loop", "after"),
            ("contrastive, then RALT", "both, with labels", "after"),
            ("control: BM25, RALT's reader", "BM25, reader tuned", "reference"),
        ),
    ),
    Panel(
        "Real text: right passage found first",
        "real-text.json",
        "recall@1",
        (
            ("untrained", "before", "before"),
            ("contrastive", "tuned on labels", "after"),
            ("distillation of BM25", "tuned without labels", "after"),
            ("BM25", "BM25", "reference"),
        ),
    ),
)


def draw() -> str:
    """Return the chart as SVG without an empty line, for Markdown would end the block there."""
    plot = WIDTH - LABELS - RIGHT
    told: list[str] = []
    body: list[str] = []
    y = 0
    for panel in PANELS:
        regimes = json.loads((EVIDENCE / panel.source).read_text(encoding="utf-8"))["regimes"]
        y += 26
        body.append(f'<text class="panel" x="0" y="{y}">{escape(panel.title)}</text>')
        top = y + 12
        y = top + 6
        for regime, name, kind in panel.rows:
            figure = regimes[regime]["metrics"][panel.column]
            mean, low, high = figure["mean"], figure["low"], figure["high"]
            y += ROW
            x, x0, x1 = (LABELS + plot * value for value in (mean, low, high))
            mid = y - ROW / 2
            body.append(
                f'<g class="{kind}"><text x="{LABELS - 12}" y="{mid + 5:.0f}" text-anchor="end">{escape(name)}</text>'
                f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{mid:.0f}" y2="{mid:.0f}"/>'
                f'<circle cx="{x:.1f}" cy="{mid:.0f}" r="5"/>'
                f'<text class="value" x="{x1 + 10:.1f}" y="{mid + 5:.0f}">{mean:.3f}</text></g>'
            )
            told.append(f"{panel.title}, {name}: {mean:.3f} ({low:.3f} to {high:.3f})")
        bottom = y + 4
        for tick in range(0, 11, 2):
            x = LABELS + plot * tick / 10
            body.insert(0, f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
            body.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick / 10:.1f}</text>')
        y = bottom + 30
    lines = [
        f'<svg class="before-after" viewBox="0 0 {WIDTH} {y}" role="img" aria-labelledby="chart-title chart-told">',
        '<title id="chart-title">Before and after tuning, with 95 % intervals</title>',
        f'<desc id="chart-told">{escape("; ".join(told))}</desc>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where the chart is not of these figures"
    )
    if not parser.parse_args().check:
        CHART.write_text(draw(), encoding="utf-8")
        return 0
    if CHART.read_text(encoding="utf-8") != draw():
        print(f"{CHART.name} is not of the figures in docs/evidence; run scripts/front_chart.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
