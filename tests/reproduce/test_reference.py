"""The reference run: its band, its p-value, and what is not compared. The runs here are tiny."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from recipe import train
from recipe.core import config as configs

spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


@pytest.fixture
def tiny(tiny_run, tmp_path, monkeypatch, capsys) -> None:
    """A tiny run in the place of the reference run, in this process and without a download."""

    def stage(name: str, *options: object) -> str:
        capsys.readouterr()
        assert name == "train" and train.main(list(map(str, options))) == 0
        return capsys.readouterr().out

    (tmp_path / "tiny.toml").write_text(configs.dump(tiny_run), encoding="utf-8")
    monkeypatch.setattr(reference, "CONFIG", tmp_path / "tiny.toml")
    monkeypatch.setattr(reference, "stage", stage)


def test_a_band_and_a_run_inside_and_outside_of_it(tiny):
    band = reference.measure_band([0, 1, 2])
    assert len(set(band["losses"])) == 3 and "seed" not in band["settings"]["train"]
    run = reference.train(3)
    low, high = reference.interval(band["losses"])
    assert reference.compare(band, run)["inside"] == (low <= run["loss"] <= high)
    outside = reference.compare(band, run | {"loss": high + 0.01})
    assert not outside["inside"] and outside["text"].startswith("outside: ") and outside["p"] < reference.LEVEL
    assert reference.compare(band, run | {"loss": (low + high) / 2})["p"] == pytest.approx(1)


@pytest.mark.parametrize("part", ["settings", "inputs"])
def test_a_run_of_something_else_is_not_compared(part):
    same = {"settings": {"rank": 8}, "inputs": {"base": "a", "corpus": "b"}}
    band = same | {"losses": [2.0, 2.1, 2.2], "machine": "one"}
    assert reference.compare(band, same | {"loss": 2.1})["inside"]
    result = reference.compare(band, same | {"loss": 2.1, part: {}})
    assert not result["comparable"] and not result["inside"] and result["p"] is None


def test_one_honest_run_of_twenty_is_outside():
    rng = np.random.default_rng(0)
    draws = rng.normal(2.0, 0.01, (4000, 6))
    outside = reference.p_value(draws[:, :5].T, draws[:, 5]) < reference.LEVEL
    assert np.mean(outside) == pytest.approx(reference.LEVEL, abs=0.01)


def test_the_interval_holds_the_losses_that_are_inside():
    losses = [2.01, 2.02, 2.0, 2.015, 2.005]
    for edge in reference.interval(losses):
        assert reference.p_value(losses, edge) == pytest.approx(reference.LEVEL)


def test_the_committed_band_is_of_the_shipped_run():
    if not reference.RESULTS.is_file():
        pytest.skip("no band is committed: tests/reproduce/reference.py --seeds 0 1 2 3 4 5 measures it")
    band = json.loads(reference.RESULTS.read_text(encoding="utf-8"))
    settings = json.loads(json.dumps(train.read_settings(configs.load(reference.CONFIG))))
    del settings["train"]["seed"]
    assert band["settings"] == settings and len(band["losses"]) == len(set(band["seeds"])) >= 5
    assert reference.SEED not in band["seeds"]
