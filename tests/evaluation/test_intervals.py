"""Intervals: they cover the truth as often as they say, and pairing makes them narrow."""

import numpy as np
import pytest

from recipe.evaluation import intervals
from recipe.evaluation.intervals import ratio


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        weights = generator.integers(20, 200, size=60).astype(float)
        base = weights * generator.normal(2.0, 0.5, size=60)
        found = ratio(base, base, weights, seed).base
        covered += found.low <= 2.0 <= found.high
    assert 178 <= covered <= 199  # 95 % of 200, and three standard deviations


def test_pairing_shows_a_difference_that_separate_intervals_hide():
    generator = np.random.default_rng(2)
    weights = np.full(50, 100.0)
    hard = generator.normal(300, 100, size=50)
    found = ratio(hard, hard - 5 + generator.normal(0, 1, size=50), weights)
    assert found.base.low < found.tuned.high and found.tuned.low < found.base.high  # the two overlap
    assert found.difference.excludes_zero and found.difference.value == pytest.approx(-0.05, abs=0.005)


def test_one_conversation_has_no_spread():
    found = ratio(np.array([3.0]), np.array([2.0]), np.array([2.0])).difference
    assert (found.low, found.value, found.high) == (-0.5, -0.5, -0.5)


def test_the_same_seed_gives_the_same_bounds():
    values = np.random.default_rng(3).normal(size=(3, 30)) + 5
    assert ratio(*values) == ratio(*values)
    assert ratio(*values) != ratio(*values, seed=1)


@pytest.mark.parametrize("values", [([], [], []), ([1.0], [1.0], [0.0]), ([1.0], [1.0, 2.0], [1.0])])
def test_nothing_to_draw_from_is_an_error(values):
    with pytest.raises(ValueError, match="expected as many of each"):
        ratio(*map(np.array, values))


def test_agrees_with_the_normal_approximation():
    generator = np.random.default_rng(4)
    values = generator.normal(1.0, 0.3, size=400)
    found = ratio(values, values, np.ones(400)).base
    half = 1.96 * values.std() / 20
    assert found.high - found.value == pytest.approx(half, rel=0.15)
    assert intervals.LEVEL == 0.95


def test_many_conversations_are_drawn_in_parts_and_the_bounds_are_those_of_one_draw():
    generator = np.random.default_rng(4)
    base, tuned, weights = generator.gamma(2.0, size=(3, 3000))
    assert len(list(intervals._drawn(3000, 0))) > 1
    whole = np.random.default_rng(0).multinomial(3000, np.full(3000, 1 / 3000), size=intervals.RESAMPLES)
    samples = (whole @ tuned - whole @ base) / (whole @ weights)
    found = ratio(base, tuned, weights).difference
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), rel=1e-9)
