"""metrics.jsonl: every step and every validation once, whatever was interrupted."""

import json

import pytest

from recipe import train
from recipe.core.files import sha256
from recipe.training.callbacks import keep_rows
from recipe.training.trainer import LoraTrainer


def rows(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_a_kill_before_the_manifest_leaves_one_row_per_validation(trained_run):
    """The process dies after the last validation; the same command validates once more."""
    config, run = trained_run
    before, adapter = rows(run), sha256(run.adapter / "adapter_model.safetensors")
    run.manifest_file.unlink()
    train.run(config)
    validated = [row["step"] for row in rows(run) if "eval_loss" in row]
    assert validated == sorted(set(validated))
    assert [(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows(run)] == [
        (row["step"], row.get("loss"), row.get("eval_loss")) for row in before
    ]
    assert sha256(run.adapter / "adapter_model.safetensors") == adapter


def test_the_last_step_is_validated_once(tiny_run, monkeypatch):
    """Where train.eval_steps divides the steps, the last validation is the final one."""
    import dataclasses

    calls, real = [], LoraTrainer.evaluate

    def count(self, *args, **kwargs):
        calls.append(self.state.global_step)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LoraTrainer, "evaluate", count)
    config = dataclasses.replace(tiny_run, train=dataclasses.replace(tiny_run.train, eval_steps=3))
    steps = train.run(config)["results"]["steps"]
    assert steps % 3 == 0 and calls == list(range(3, steps + 1, 3))


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"loss": 1}', "[1]", ""])
def test_a_cut_off_line_is_dropped(tmp_path, cut):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(f'{{"step": 1}}\n{{"step": 2}}\n{cut}\n')
    keep_rows(metrics, lambda row: row["step"] <= 1)
    assert metrics.read_text() == '{"step": 1}\n'
