"""Charts: round ticks, no lost spike, well-formed SVG without anything from elsewhere."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.reports.charts import Bar, Series, interval_chart, line_chart, number, smooth, thin, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9))
def test_ticks_are_few_and_inside(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 7
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in found)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 10, [0, 2, 4, 6, 8, 10]), (1.03, 3.4, [1.5, 2.0, 2.5, 3.0]), (7, 7, [7])]
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_thinning_keeps_every_spike():
    points = [(float(x), 1.0) for x in range(10_000)]
    points[5003] = (5003.0, 50.0)
    kept = thin(points)
    assert len(kept) <= 400 and (5003.0, 50.0) in kept and kept == sorted(kept)


def test_smoothing_starts_at_the_first_value():
    assert [y for _, y in smooth([(0, 4.0), (1, 4.0)])] == pytest.approx([4.0, 4.0])
    assert [x for x, _ in smooth([(0, math.nan), (1, 2.0)])] == [1]


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(allow_nan=True, allow_infinity=True)), max_size=30))
def test_any_numbers_make_well_formed_svg(points):
    chart = line_chart("loss <b>", [Series("train & <i>", sorted(points)), Series("validation", points[:1], dots=True)])
    if chart:
        root = ElementTree.fromstring(chart)
        assert {"figure", "svg"} <= {element.tag for element in root.iter()} and "nan" not in chart.casefold().replace(
            "nano", ""
        )


def test_nothing_to_draw_is_nothing():
    assert line_chart("x", [Series("a", []), Series("b", [(0.0, math.nan)])]) == ""


@pytest.mark.parametrize(("value", "label"), [(0, "0"), (0.00021, "2e-4"), (1.5, "1.5"), (12345, "12,345")])
def test_labels_are_short(value, label):
    assert number(value) == label


@given(st.lists(st.tuples(st.text(max_size=60), st.floats(), st.floats(), st.floats()), max_size=8))
def test_any_intervals_make_well_formed_svg(rows):
    chart = interval_chart("<differences>", [Bar(*row) for row in rows])
    if chart:
        ElementTree.fromstring(chart)


def test_an_interval_is_drawn_where_it_is_and_coloured_by_its_side_of_zero():
    chart = interval_chart("x", [Bar("worse", 2.0, 1.0, 3.0), Bar("better", -2.0, -3.0, -1.0), Bar("either", 0, -1, 1)])
    root = ElementTree.fromstring(chart)
    lines = [line for line in root.iter("line") if line.get("class", "").startswith("line")]
    assert [line.get("class") for line in lines] == ["line c1", "line c2", "line c0"]
    (zero,) = [line for line in root.iter("line") if line.get("class") == "zero"]
    assert float(lines[0].get("x1")) > float(zero.get("x1")) > float(lines[1].get("x2"))
