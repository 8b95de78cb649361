"""Losses per conversation: they add up to the loss of the whole, and every group is counted once."""

import numpy as np
import pytest

from recipe.evaluation.losses import LEAST, Scored, summarize, turn_numbers

RNG = np.random.default_rng(0)


def scored(count: int) -> list[Scored]:
    out = []
    for number in range(count):
        turns = [1] * 5 + [2] * int(RNG.integers(1, 9)) + [5] * (number % 2)
        base = RNG.normal(2.0, 0.3, len(turns))
        language = "de" if number % 3 else ""
        out.append(Scored(f"c{number // 2}", f"s{number % 2}", language, 40, turns, base, base - 0.5))
    return out


def test_answers_are_numbered_by_their_runs_of_trained_tokens():
    assert turn_numbers([-100, -100, 7, 8, -100, 9, -100, -100, 3]) == [1, 1, 2, 3]
    assert turn_numbers([5, 6]) == [1]  # the first token of a sample is never a target


def test_the_parts_add_up_to_the_whole():
    items = scored(40)
    found = summarize(items)
    tokens = sum(len(item.base) for item in items)
    total = sum(sum(item.base) for item in items)
    assert found["loss"]["base"][0] == pytest.approx(total / tokens)
    assert found["bits_per_byte"]["base"][0] == pytest.approx(total / np.log(2) / (40 * 40))
    assert found["conversations"] == 20
    assert [row["name"] for row in found["by_position"]] == ["answer 1", "answer 2", "answer 4 and later"]
    assert {row["name"] for row in found["by_language"]} == {"de", "unknown"}


def test_a_constant_gain_has_no_spread():
    value, low, high = summarize(scored(30))["loss"]["difference"]
    assert (value, low, high) == pytest.approx((-0.5, -0.5, -0.5))


def test_a_small_group_has_no_interval():
    found = summarize(scored(2 * LEAST + 2))
    assert all(len(row["base"]) == (3 if row["conversations"] >= LEAST else 1) for row in found["by_source"])
    assert len(summarize(scored(4))["by_source"][0]["base"]) == 1
