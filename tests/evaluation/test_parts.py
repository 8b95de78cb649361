"""Finished parts are found again, damaged ones are not, and others' never are."""

import json

import pytest

from recipe.evaluation.parts import Parts


def fill(path, origin="models", count=3):
    with Parts(path, origin) as parts:
        out = [parts.get(["question", number], lambda number=number: [number, 0.1 * number]) for number in range(count)]
        return out, parts.reused, parts.computed


def test_a_second_reading_computes_nothing_and_returns_the_same(tmp_path):
    path = tmp_path / "parts.jsonl"
    first, _, computed = fill(path)
    again, reused, none = fill(path)
    assert again == first and (computed, reused, none) == (3, 3, 0)
    assert fill(path, count=5)[1:] == (3, 2)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_killed_process_left_half_written_is_computed_again(tmp_path, cut):
    path = tmp_path / "parts.jsonl"
    first, *_ = fill(path)
    path.write_bytes(path.read_bytes()[:-cut])
    again, reused, computed = fill(path)
    assert again == first and (reused, computed) == (2, 1)
    assert fill(path)[1:] == (3, 0), "nothing was glued to the half line"


def test_an_altered_part_is_computed_again(tmp_path):
    path = tmp_path / "parts.jsonl"
    first, *_ = fill(path)
    path.write_text(path.read_text().replace("[1, 0.1]", "[1, 0.9]"))
    again, reused, computed = fill(path)
    assert again == first and (reused, computed) == (2, 1)


@pytest.mark.parametrize("line", ["", "[]", "{", '{"origin": "other models"}', "\x00", "[" * 100_000])
def test_parts_of_another_origin_are_thrown_away(tmp_path, line):
    path = tmp_path / "parts.jsonl"
    fill(path)
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]) + "\n")
    assert fill(path)[1:] == (0, 3)
    assert json.loads(path.read_text().splitlines()[0]) == {"origin": "models"}
