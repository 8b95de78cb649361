"""train.keep = "best" and train.patience: the validations choose, a resume chooses the same, nothing else changes."""

import dataclasses
import json

import pytest
from safetensors.torch import load_file

from recipe import train
from recipe.core import config as configs
from recipe.core.config import Config
from recipe.core.errors import UsageError
from recipe.core.manifest import read_manifest, verify
from recipe.core.run import Run
from recipe.model.adapter import ADAPTER_FILE
from recipe.training.callbacks import Progress


@pytest.fixture
def unstable(tiny_run):
    """With this rate the second validation is better than the third: measured, see the test."""
    settings = dataclasses.replace(tiny_run.train, learning_rate=0.3, epochs=3.0, eval_steps=1, save_steps=1)
    return dataclasses.replace(tiny_run, train=dataclasses.replace(settings, keep_checkpoints=99))


def changed(config, **fields):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))


def validations(run):
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}


def test_the_best_adapter_is_kept_and_the_run_stops_early_and_resumes_as_it_was(unstable, monkeypatch, capsys):
    config = changed(unstable, keep="best", patience=1)
    results = train.run(config)["results"]
    said = capsys.readouterr().err
    run = Run(Run.latest(config).resolve())
    losses = validations(run)
    best = min(losses, key=losses.__getitem__)
    last = max(losses)
    assert losses[last] >= losses[best] and last == best + 1 == results["steps"] < 14
    assert results["adapter_step"] == best and results["stopped_early"]
    assert results["validation_loss"] == losses[best]
    assert f"stopped early after step {last}: no lower validation loss in 1 validations" in said
    assert f"keeping the adapter of step {best}, which has the lowest validation loss" in said
    saved = load_file(run.adapter / ADAPTER_FILE)
    for name, tensor in load_file(run.checkpoints / f"checkpoint-{best}" / ADAPTER_FILE).items():
        assert tensor.equal(saved[name]), name
    # killed after the last checkpoint: it knows that the run is over, and which adapter is the best
    expected = read_manifest(run.folder)
    run.manifest_file.unlink()
    train.run(config)
    assert read_manifest(run.folder) == expected and verify(run.folder) == []
    assert validations(run) == losses


class Killed(BaseException):
    """A kill -9, to Python."""


def test_a_resume_after_the_best_validation_keeps_it(unstable, tmp_path, monkeypatch):
    config = changed(unstable, keep="best", epochs=1.0)
    whole = train.run(dataclasses.replace(config, runs=str(tmp_path / "whole")))

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Progress, "on_step_end", kill, raising=False)
        train.run(config)
    assert train.run(config) == whole


def test_patience_alone_keeps_the_last_adapter_and_changes_no_step_before(unstable, tmp_path):
    results = train.run(changed(unstable, patience=1))["results"]
    assert results["stopped_early"] and results["adapter_step"] == results["steps"]
    run = Run(Run.latest(unstable).resolve())
    train.run(dataclasses.replace(unstable, runs=str(tmp_path / "whole")))
    whole = Run(Run.latest(dataclasses.replace(unstable, runs=str(tmp_path / "whole"))).resolve())
    assert validations(run).items() <= validations(whole).items()


@pytest.mark.parametrize("fields", [{"keep": "best"}, {"patience": 3}])
def test_a_choice_without_validations_is_refused(tiny_run, fields):
    with pytest.raises(UsageError, match=r"train\.eval_steps is 0, expected validations during the run to choose from"):
        train.run(changed(tiny_run, eval_steps=0, **fields))


def test_the_choice_is_part_of_a_runs_id_only_where_it_is_made(tiny_run):
    assert not {"keep", "patience"} & configs.hashed(Config())["train"].keys()
    assert train.read_settings(tiny_run) == train.read_settings(changed(tiny_run, eval_steps=1))
    best = changed(tiny_run, keep="best")
    assert train.read_settings(best) != train.read_settings(tiny_run)
    assert train.read_settings(best) != train.read_settings(changed(best, eval_steps=1))
