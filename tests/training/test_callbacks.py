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


def test_every_number_is_in_every_row(trained_run):
    _, run = trained_run
    steps = [row for row in rows(run) if "loss" in row]
    assert len(steps) > 5
    for row in steps:
        assert row["grad_norm"] > 0 and row["loss_scale"] == 1.0 and row["skipped_steps"] == 0
        assert 50 < row["memory_mb"] < 1 << 20
    # the rate of the step itself: a warm-up begins at 0, a cosine ends above it
    assert steps[0]["learning_rate"] == 0.0 and steps[-1]["learning_rate"] > 0.0
    assert max(row["learning_rate"] for row in steps) == pytest.approx(1e-2)


def test_a_number_that_is_not_finite_is_null(tmp_path):
    """The gradient norm of a skipped step is inf, which JSON does not know."""
    from transformers import TrainerState

    from recipe.core.run import Run
    from recipe.training.callbacks import Progress

    progress = Progress(lambda: 0, dict, Run(tmp_path), 1.0)
    state = TrainerState(global_step=0, max_steps=2)
    progress.on_train_begin(None, state, None)
    state.global_step = 1
    progress.on_log(None, state, None, {"loss": 1.0, "grad_norm": float("inf")})
    (line,) = Run(tmp_path).metrics.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["grad_norm"] is None


def read_events(path):
    """The records of an event file by its format: length, masked CRC, an Event, masked CRC."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    content, start, events = path.read_bytes(), 0, []
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        events.append(Event.FromString(content[start + 12 : start + 12 + length]))
        start += 16 + length
    assert start == len(content)
    return events


def test_tensorboard_shows_the_rows_of_the_metrics(trained_run):
    import socket

    config, run = trained_run
    header, *events = read_events(run.events)
    assert header.file_version == "brain.Event:2"
    found = [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in events]
    names = {"loss": "loss/train", "eval_loss": "loss/validation"}
    expected = [
        (row.pop("step"), pytest.approx({names.get(name, name): value for name, value in row.items()}, rel=1e-6))
        for row in rows(run)
    ]
    assert found == expected
    assert "tensorboard/events.out.tfevents.run" in run.records()
    assert socket.gethostname().encode() not in run.events.read_bytes()
    run.manifest_file.unlink()
    train.run(config)  # validates once more
    again = read_events(run.events)[1:]
    assert [event.step for event in again] == [row["step"] for row in rows(run)], "nothing twice"
