"""Line charts as inline SVG: no script, no font or picture from elsewhere; colours come from the page's style sheet."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28  # margins in which the labels stand
MOST = 1e100  # larger numbers overflow in the differences
MOST_POINTS = 400  # of a drawn line: more than the pixels of a phone show


@dataclass(frozen=True)
class Series:
    """A line (or, with `dots`, points): its name and (x, y) values with growing x. Not-finite values are gaps."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def line_chart(title: str, series: Sequence[Series], x_label: str = "step") -> str:
    """An SVG element of the series in one pair of axes, with a legend; empty text where there is nothing to draw."""
    drawn = [Series(each.name, finite(each.points), each.dots) for each in series]
    drawn = [each for each in drawn if each.points]
    if not drawn:
        return ""
    xs = [x for each in drawn for x, _ in each.points]
    ys = [y for each in drawn for _, y in each.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_span, y_span = _span(xs, x_ticks), _span(ys, y_ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_span[0]) / (x_span[1] - x_span[0]) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - y_span[0]) / (y_span[1] - y_span[0]) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(up, 1)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}">'
    ]
    for value in y_ticks:
        _, y = place(x_span[0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{number(value)}</text>')
    for value in x_ticks:
        x, _ = place(value, y_span[0])
        parts.append(f'<text x="{x}" y="{HEIGHT - 10}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{html.escape(x_label)}</text>')
    for index, each in enumerate(drawn):
        places = [place(x, y) for x, y in thin(each.points)]
        if each.dots or len(places) == 1:
            parts += [f'<circle class="dot c{index}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in places]
        else:
            path = " ".join(f"{x},{y}" for x, y in places)
            parts.append(f'<polyline class="line c{index}" points="{path}"/>')
    legend = "".join(f'<span class="key c{index}">{html.escape(each.name)}</span>' for index, each in enumerate(drawn))
    return f"<figure><figcaption>{html.escape(title)} {legend}</figcaption>{''.join(parts)}</svg></figure>"


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
