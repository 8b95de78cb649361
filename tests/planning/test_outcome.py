"""The plan against what happened: the numbers of a run beside those of its plan."""

import dataclasses

import pytest

from recipe.core.errors import RecipeError
from recipe.core.manifest import read_manifest
from recipe.planning.outcome import compare
from tests.conftest import tiny_config


def test_a_finished_run_stands_beside_its_plan(tiny_base, tiny_corpus, tmp_path):
    config = tiny_config(tiny_base, tiny_corpus, tmp_path)
    tokens = read_manifest(tiny_corpus)["results"]["tokens"]["train"]
    metrics = [
        {"step": 1, "epoch": 0.5, "tokens_per_second": tokens / 1800, "memory_mb": 5},
        {"step": 9, "epoch": 2.0, "tokens_per_second": tokens / 3600, "memory_mb": 1234},
        {"step": 9, "eval_loss": 1.0},
    ]
    rows = {row[0]: row[1:] for row in compare(config, metrics, {"steps": 9, "fill": 0.812})}
    assert rows["optimizer steps"] == [f"{-(-2 * tokens // 512)} if every pack were full", "9"]
    assert rows["share of the packs that is filled"] == ["100.0%", "81.2%"]
    assert rows["hours"][1] == "about 2.0" and rows["peak memory, MB"][1] == "1,234"


def test_a_run_that_has_just_begun_shows_its_plan(tiny_base, tiny_corpus, tmp_path):
    rows = {row[0]: row[1:] for row in compare(tiny_config(tiny_base, tiny_corpus, tmp_path), [], {})}
    assert rows["optimizer steps"][1] == rows["hours"][1] == rows["tokens per second"][1] == "-"
    assert rows["tokens per second"][0].startswith("at most ")


def test_without_a_base_there_is_no_plan(tiny_base, tiny_corpus, tmp_path):
    config = tiny_config(tiny_base, tiny_corpus, tmp_path)
    gone = dataclasses.replace(config, base=dataclasses.replace(config.base, path=str(tmp_path / "none")))
    with pytest.raises(RecipeError):
        compare(gone, [], {})
