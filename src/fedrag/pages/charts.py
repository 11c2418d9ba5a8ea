"""Charts as inline SVG: dots with their intervals, and lines. No script draws them, and no library.

Places across are percentages and places down are pixels, so a chart is as wide as its column while its words keep
their size: it reads on a phone as on a screen. Colours come from the page's style sheet by class: `s0`, `s1`, ...

>>> ticks(0.0, 0.9)
[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
>>> svg = lines(LineChart("loss", "step", (Series("stage 1", ((0, 2.0), (10, 1.0))),)), "c1")
>>> 'd="M0,0L1000,1000"' in svg
True
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 6
_NAME, _DOT, _GAP, _TALL, _MARKED = 20, 16, 6, 220, 40  # pixels, and points of a line that still get a mark each


@dataclass(frozen=True, slots=True)
class Series:
    """A named line of points `(x, y)`, x ascending, all finite; `style` is its classes, those of its place if empty."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: str = ""


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over the same x. `across` says what x counts, `note` what is not drawn."""

    title: str
    across: str
    series: tuple[Series, ...]
    note: str = ""

    def rows(self) -> list[tuple[float, list[float | None]]]:
        """The same as a table: each x, and the y of every line there, if it has one."""
        columns = [dict(series.points) for series in self.series]
        return [(x, [column.get(x) for column in columns]) for x in sorted({x for column in columns for x in column})]


@dataclass(frozen=True, slots=True)
class Dot:
    """A value and the ends of its interval; `style` is its classes, which choose colour and shape."""

    style: str
    mean: float
    low: float
    high: float


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers at equal steps from `low` or just below it to `high` or just above it; about `most` steps.

    The ends may be equal; they must be finite and below 1e300.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        room = abs(low) / 2 if abs(low) > 1e-6 else 1.0
        low, high = (low - room if low < 0 else max(0.0, low - room)), high + room
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next((unit * factor for factor in (1, 2, 5) if unit * factor >= rough * 0.999), unit * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(place * step, digits) for place in range(first, last + 1)]


def intervals(rows: Sequence[tuple[str, Sequence[Dot]]], ident: str, title: str, axis: Sequence[float]) -> Markup:
    """Draw, for each named row, its dots with their intervals on the axis; a line marks 0 where it is inside."""
    low, high = axis[0], axis[-1]

    def across(value: float) -> str:
        return _short(100 * (min(max(value, low), high) - low) / (high - low)) + "%"

    body: list[Markup] = []
    down = 0
    for name, dots in rows:
        body.append(Markup('<text class="name" x="0" y="{}">{}</text>').format(down + 14, name))
        for place, dot in enumerate(dots):
            y = down + _NAME + _DOT * place + _DOT // 2
            body.append(
                Markup(
                    '<g class="dot {}"><line x1="0%" x2="100%" y1="{y}" y2="{y}" class="track"/>'
                    '<line x1="{}" x2="{}" y1="{y}" y2="{y}" class="whisker"/><circle cx="{}" cy="{y}" r="5"/></g>'
                ).format(dot.style, across(dot.low), across(dot.high), across(dot.mean), y=y)
            )
        down += _NAME + _DOT * len(dots) + _GAP
    grid = [
        Markup('<line x1="{x}" x2="{x}" y1="0" y2="{}" class="{}"/><text class="tick" x="{x}" y="{}">{}</text>').format(
            down, "zero" if value == 0 else "grid", down + 18, _label(value), x=across(value)
        )
        for value in axis
    ]
    what = f"{len(rows)} rows, each with {len(rows[0][1]) if rows else 0} dots and their 95 % intervals, "
    what += f"from {_label(low)} to {_label(high)}. The table has the numbers."
    return _svg(ident, title, what, down + 26, [*grid, *body], "intervals")


def lines(chart: LineChart, ident: str) -> Markup:
    """Draw a chart's lines, with marks where they have few points."""
    points = [point for series in chart.series for point in series.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    side = ticks(min(ys), max(ys), 4)
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 1, right + 1
    foot = [tick for tick in ticks(left, right) if left <= tick <= right and (tick == int(tick))]

    def across(x: float) -> float:
        return (x - left) / (right - left)

    def down(y: float) -> float:
        return (side[-1] - y) / (side[-1] - side[0])

    body = [
        Markup('<line x1="0%" x2="100%" y1="{y}" y2="{y}" class="grid"/>').format(y=_short(_TALL * down(tick)))
        + Markup('<text class="side" x="-8" y="{}">{}</text>').format(_short(_TALL * down(tick) + 4), _label(tick))
        for tick in side
    ]
    body += [
        Markup('<text class="tick" x="{}%" y="{}">{}</text>').format(_short(100 * across(x)), _TALL + 20, _label(x))
        for x in foot
    ]
    body.append(Markup('<text class="axis" x="100%" y="{}">{}</text>').format(_TALL + 38, chart.across))
    paths: list[Markup] = []
    for place, series in enumerate(chart.series):
        look = series.style or style(place)
        path = "L".join(f"{_short(1000 * across(x))},{_short(1000 * down(y))}" for x, y in series.points)
        paths.append(Markup('<path class="line {}" d="M{}"/>').format(look, path))
        if len(series.points) <= _MARKED:
            body += [
                Markup('<circle class="mark {}" cx="{}%" cy="{}" r="3.5"/>').format(
                    look, _short(100 * across(x)), _short(_TALL * down(y))
                )
                for x, y in series.points
            ]
    inside = Markup('<svg width="100%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none">{}</svg>').format(
        _TALL, Markup("").join(paths)
    )
    named = ", ".join(series.name for series in chart.series)
    what = f"Lines over {chart.across} from {_label(left)} to {_label(right)}: {named}. The table has the numbers."
    return _svg(ident, chart.title, what, _TALL + 44, [*body, inside], "lines")


def style(place: int) -> str:
    """The classes of the line at this place: a colour, and another dash each time the colours are used up."""
    return f"s{place % COLOURS} d{place // COLOURS % 3}"


def _svg(ident: str, title: str, what: str, height: int, body: Sequence[Markup], kind: str) -> Markup:
    return Markup(
        '<svg class="{}" role="img" aria-labelledby="{i}-t {i}-d" height="{}">'
        '<title id="{i}-t">{}</title><desc id="{i}-d">{}</desc>{}</svg>'
    ).format(kind, height, title, what, Markup("").join(body), i=ident)


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _label(value: float) -> str:
    value += 0.0  # -0 is 0
    return f"{value:,.0f}" if value == int(value) and 1000 <= abs(value) < 1e7 else f"{value:.6g}"
