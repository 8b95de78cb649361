"""Charts as inline SVG: no script, no font or picture from elsewhere; colours come from the page's style sheet."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from recipe.core.text import printable

MOST = 1e100  # larger numbers overflow in the differences
MOST_POINTS = 400  # of a drawn line: more than the pixels of a phone show


@dataclass(frozen=True)
class Size:
    """A drawing area and the margins in which the labels stand. Text of a large chart has 9 units, on a phone 19."""

    width: int
    height: int
    left: int
    right: int = 14
    top: int = 14
    bottom: int = 34


LARGE, SMALL = Size(640, 260, left=72), Size(340, 170, left=60)
ROW, NAMES = 26, 190  # of an interval chart: the height of a row, the width of the names


@dataclass(frozen=True)
class Series:
    """A line (or, with `dots`, points): its name and (x, y) values with growing x. Not-finite values are gaps.

    A `faint` line has no place in the legend; it has the colour of the series behind it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Bar:
    """A row of an interval chart: a name, a value and the bounds of its interval."""

    name: str
    value: float
    low: float
    high: float


def line_chart(title: str, series: Sequence[Series], x_label: str = "step", size: Size = LARGE) -> str:
    """An SVG element of the series in one pair of axes, with a legend; empty text where there is nothing to draw."""
    drawn = [Series(each.name, finite(each.points), each.dots, each.faint) for each in series]
    drawn = [each for each in drawn if each.points]
    if not drawn:
        return ""
    xs = [x for each in drawn for x, _ in each.points]
    ys = [y for each in drawn for _, y in each.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_span, y_span = _span(xs, x_ticks), _span(ys, y_ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        across = size.left + (x - x_span[0]) / (x_span[1] - x_span[0]) * (size.width - size.left - size.right)
        up = (
            size.height
            - size.bottom
            - (y - y_span[0]) / (y_span[1] - y_span[0]) * (size.height - size.top - size.bottom)
        )
        return round(across, 1), round(up, 1)

    grid = [(place(x_span[0], value)[1], number(value)) for value in y_ticks]
    parts = [_open(title, size), *_horizontal(grid, size)]
    parts += _below([(place(value, y_span[0])[0], number(value)) for value in x_ticks], x_label, size)
    color = 0
    for each in drawn:
        parts += _draw(each, [place(x, y) for x, y in thin(each.points)], color)
        color += not each.faint
    named = [each.name for each in drawn if not each.faint]
    return _figure(title, named, parts)


def _draw(series: Series, places: Sequence[tuple[float, float]], color: int) -> list[str]:
    if series.dots or len(places) == 1:
        return [f'<circle class="dot c{color}" cx="{x}" cy="{y}" r="3.2"/>' for x, y in places]
    path = " ".join(f"{x},{y}" for x, y in places)
    return [f'<polyline class="line{" faint" if series.faint else ""} c{color}" points="{path}"/>']


def _horizontal(grid: Sequence[tuple[float, str]], size: Size) -> list[str]:
    """A line with its label for each value of the y axis."""
    out = []
    for y, label in grid:
        out.append(f'<line class="grid" x1="{size.left}" x2="{size.width - size.right}" y1="{y}" y2="{y}"/>')
        out.append(f'<text x="{size.left - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
    return out


def _below(labels: Sequence[tuple[float, str]], x_label: str, size: Size) -> list[str]:
    """The labels of the x axis, its name in the left margin."""
    y = size.height - 10
    out = [f'<text x="{size.left - 8}" y="{y}" text-anchor="end">{html.escape(x_label)}</text>']
    for x, label in labels:
        anchor = "end" if x > size.width - size.right - 12 else "middle"
        out.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{label}</text>')
    return out


def interval_chart(title: str, bars: Sequence[Bar]) -> str:
    """Values with their intervals, one below the other, and a line at zero; empty text without bars."""
    bars = [bar for bar in bars if all(abs(value) < MOST for value in (bar.value, bar.low, bar.high))]
    if not bars:
        return ""
    size = Size(640, len(bars) * ROW + 48, left=NAMES)
    values = [value for bar in bars for value in (bar.low, bar.high)] + [0.0]
    labels = ticks(min(values), max(values))
    low, high = _span(values, labels)

    def place(value: float) -> float:
        return round(size.left + (value - low) / (high - low) * (size.width - size.left - size.right), 1)

    parts = [_open(title, size)]
    for value in labels:
        style, x = ("zero" if value == 0 else "grid"), place(value)
        parts.append(f'<line class="{style}" x1="{x}" x2="{x}" y1="8" y2="{size.height - size.bottom}"/>')
    parts += _below([(place(value), number(value)) for value in labels], "", size)
    for index, bar in enumerate(bars):
        y, color = 8 + ROW * index + ROW // 2, 2 if bar.high < 0 else 1 if bar.low > 0 else 0
        parts.append(f'<text x="{size.left - 12}" y="{y + 4}" text-anchor="end">{_short(bar.name)}</text>')
        parts.append(f'<line class="line c{color}" x1="{place(bar.low)}" x2="{place(bar.high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot c{color}" cx="{place(bar.value)}" cy="{y}" r="3.6"/>')
    return _figure(title, [], parts)


def _short(name: str, most: int = 26) -> str:
    text = printable(name)
    return html.escape(text if len(text) <= most else f"{text[: most - 1]}…")


def _open(title: str, size: Size) -> str:
    label = html.escape(printable(title), quote=True)
    kind = "chart" if size.width > SMALL.width else "chart narrow"
    return f'<svg class="{kind}" viewBox="0 0 {size.width} {size.height}" role="img" aria-label="{label}">'


def _figure(title: str, names: Sequence[str], parts: Sequence[str]) -> str:
    keys = [f'<span class="key c{index}">{html.escape(printable(name))}</span>' for index, name in enumerate(names)]
    legend = "".join(keys) if len(keys) > 1 else ""
    return f"<figure><figcaption>{html.escape(printable(title))}{legend}</figcaption>{''.join(parts)}</svg></figure>"


def finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points whose numbers can be drawn: neither infinite, nor NaN, nor absurd."""
    return [(x, y) for x, y in points if abs(x) < MOST and abs(y) < MOST]


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points. Of each stretch the lowest and the highest stay, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    step = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), step):
        stretch = points[start : start + step]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return kept


def smooth(points: Sequence[tuple[float, float]], weight: float = 0.9) -> list[tuple[float, float]]:
    """The exponential moving average with Adam's correction of its start."""
    out, mean = [], 0.0
    for count, (x, y) in enumerate(finite(points), start=1):
        mean = weight * mean + (1 - weight) * y
        out.append((x, mean / (1 - weight**count)))
    return out


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)] or [low]


def number(value: float) -> str:
    """A tick's label: short, with thousands marked."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"


def _span(values: Sequence[float], labels: Sequence[float]) -> tuple[float, float]:
    low, high = min(*values, *labels), max(*values, *labels)
    pad = max(0.5, abs(low) * 1e-3)
    return (low, high) if high > low else (low - pad, high + pad)
