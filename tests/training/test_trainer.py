"""The Trainer of a run: 8-bit AdamW (only bitsandbytes' CUDA kernel is replaced by a reference), resume, devices."""

import dataclasses
import json
import socket
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from recipe import train
from recipe.core.cli import entry
from recipe.core.config import Train
from recipe.core.errors import RecipeError
from recipe.core.run import Run
from recipe.model.adapter import add_adapter
from recipe.model.load import load_base, load_tokenizer
from recipe.model.prepare import prepare_for_training
from recipe.planning import memory
from recipe.training.dataset import PackedDataset, encode_file
from recipe.training.state import read_state, write_state
from recipe.training.trainer import LoraTrainer, Stopped, build_trainer, training_arguments
from tests.training import adamw8bit

CPU = torch.device("cpu")


@pytest.fixture
def kernel(monkeypatch):
    from bitsandbytes import functional

    monkeypatch.setattr(functional, "optimizer_update_8bit_blockwise", adamw8bit.optimizer_update_8bit_blockwise)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)  # what it ends a step with


def build(config, folder: Path) -> LoraTrainer:
    """A Trainer of the tiny run with an adapter of rank 96 without dropout.

    Its matrices have 4,608 numbers and more: bitsandbytes keeps moments of fewer than 4,096 in fp32.
    """
    lora = dataclasses.replace(config.lora, rank=96, dropout=0.0, target_modules=("q_proj", "down_proj"))
    base, corpus = Path(config.base.path), Path(config.corpus.path)
    model = add_adapter(load_base(base, "int8", CPU), lora, seed=0)
    prepare_for_training(model)
    rows = encode_file(corpus / "train.jsonl", load_tokenizer(base), config.corpus.template)
    settings = config.train
    data = PackedDataset(rows, 256, settings.seed, settings.epochs, settings.gradient_accumulation_steps)
    return build_trainer(model, settings, Run(folder), data, PackedDataset(rows, 256))


def train_losses(trainer: LoraTrainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained_parameters(trainer: LoraTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_adamw8bit_learns_as_adamw_with_planned_memory(kernel, tiny_run, tmp_path):
    plain = train_losses(build(tiny_run, tmp_path / "32"))
    eight = dataclasses.replace(tiny_run, train=dataclasses.replace(tiny_run.train, optimizer="adamw8bit"))
    trainer = build(eight, tmp_path / "8")
    quantized = train_losses(trainer)
    assert quantized[-1] < 0.9 * quantized[0]
    assert quantized == pytest.approx(plain, rel=0.05)
    optimizer = trainer.optimizer.optimizer
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name.startswith("state")]
    assert {value.dtype for value in moments} == {torch.uint8}
    trained = sum(parameter.numel() for parameter in trained_parameters(trainer).values())
    assert sum(value.numel() for value in moments) == memory.OPTIMIZER_BYTES["adamw8bit"] * trained


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_resumed_trainer_is_bit_identical(kernel, tiny_run, tmp_path, optimizer):
    settings = dataclasses.replace(tiny_run.train, optimizer=optimizer, keep_checkpoints=99, save_steps=1)
    config = dataclasses.replace(tiny_run, train=settings)
    whole = build(config, tmp_path / "whole")
    whole.train()
    expected = trained_parameters(whole)
    again = build(config, tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / "checkpoint-2"))
    found = trained_parameters(again)
    assert found.keys() == expected.keys() and len(found) == 2 * 2 * 2
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name]), name


def transposed(moments: dict) -> dict:
    return moments | {
        "state": {key: values | {"exp_avg": values["exp_avg"].t()} for key, values in moments["state"].items()}
    }


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "memory", "moments"])
def test_a_checkpoint_whose_state_is_another_one_is_one_sentence(kernel, tiny_run, tmp_path, part):
    settings = dataclasses.replace(tiny_run.train, keep_checkpoints=99, save_steps=1)
    config = dataclasses.replace(tiny_run, train=settings)
    build(config, tmp_path / "whole").train()
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-2"
    state = read_state(checkpoint)
    other = {"optimizer": transposed(state["optimizer"])} if part == "moments" else {part: {"param_groups": []}}
    write_state(checkpoint, state | other)
    with pytest.raises(RecipeError, match=r"checkpoint-2 has no readable training_state.*to start the run over"):
        build(config, tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_train(tiny_run, tmp_path, steps):
    single = with_train(tiny_run, gradient_accumulation_steps=1, epochs=1.0)
    packs = len(build(single, tmp_path / "packs").train_dataset)
    per_step = -(-packs // steps)
    trainer = build(with_train(tiny_run, gradient_accumulation_steps=per_step, epochs=1.0), tmp_path / "run")
    assert len(train_losses(trainer)) == trainer.state.max_steps == steps
    ups = [value for name, value in trained_parameters(trainer).items() if "lora_B" in name]
    assert all(up.count_nonzero() for up in ups)


def stop_at(trainer: LoraTrainer, step: int) -> None:
    trainer.stop_requested = trainer.signaled = lambda: trainer.state.global_step >= step
    with pytest.raises(Stopped):
        trainer.train()
    trainer.save_last_step()


def validated(trainer: LoraTrainer) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


def test_a_resumed_run_saves_and_validates_as_often_as_it_is_told_now(tiny_run, tmp_path):
    settings = {"gradient_accumulation_steps": 1, "keep_checkpoints": 99, "epochs": 4.0}
    stop_at(build(with_train(tiny_run, **settings, save_steps=4, eval_steps=0), tmp_path), 4)
    trainer = build(with_train(tiny_run, **settings, save_steps=1, eval_steps=3), tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-4"))
    last = trainer.state.max_steps
    assert sorted(int(path.name[11:]) for path in (tmp_path / "checkpoints").iterdir()) == [*range(4, last + 1)]
    assert validated(trainer) == [step for step in range(5, last + 1) if step % 3 == 0]


def test_a_stop_in_a_validation_leaves_it_for_the_resumed_run(tiny_run, tmp_path):
    settings = with_train(
        tiny_run, gradient_accumulation_steps=1, epochs=4.0, save_steps=100, eval_steps=3, keep="best"
    )
    whole = build(settings, tmp_path / "whole")
    whole.train()
    stopped = build(settings, tmp_path / "stopped")
    stop_at(stopped, 3)  # the steps are done when the validation begins
    assert stopped.state.global_step == 3 and not validated(stopped)
    resumed = build(settings, tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoints" / "checkpoint-3"))
    assert validated(resumed) == validated(whole) == [*range(3, whole.state.max_steps + 1, 3)]
    assert resumed.finish() == whole.finish()


def test_a_time_limit_lets_a_validation_end(tiny_run, tmp_path):
    """Else one that takes longer than the limit would begin anew with each start."""
    trainer = build(with_train(tiny_run, gradient_accumulation_steps=1, epochs=4.0, eval_steps=3), tmp_path)
    trainer.stop_requested = lambda: trainer.state.global_step >= 3
    with pytest.raises(Stopped):
        trainer.train()
    assert validated(trainer) == [3]


def test_tokens_are_those_of_the_packs_of_each_step(tiny_run, tmp_path):
    trainer = build(with_train(tiny_run, epochs=1.5, eval_steps=0), tmp_path)
    trainer.train()
    results, data = trainer.finish(), trainer.train_dataset
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [row for pack in data.packs for row in pack]
    assert results.tokens == rows[-1]["tokens"] == sum(data.lengths[row] for row in seen)
    assert results.trained_tokens == sum(data[number]["labels"].ne(-100).sum() for number in range(len(data)))
    first = data.packs[: trainer.args.gradient_accumulation_steps]
    assert rows[0]["tokens"] == sum(data.lengths[row] for pack in first for row in pack)


def test_only_packs_that_were_divided_count_as_such(tiny_run, tmp_path):
    trainer = build(tiny_run, tmp_path)
    data = trainer.train_dataset
    trainer.memory.parts = 2
    trainer.train()
    assert trainer.memory.split_packs == sum(len(pack) > 1 for pack in data.packs)
    alone = build(tiny_run, tmp_path / "alone")
    alone.train_dataset.packs[:] = [[pack[0]] for pack in data.packs]
    alone.memory.parts = 2
    alone.train()
    assert alone.memory.split_packs == 0


def test_adamw8bit_on_a_cpu_says_what_it_needs_before_anything_is_read(tiny_run, capsys):
    config = dataclasses.replace(tiny_run, train=Train(optimizer="adamw8bit"))
    assert entry(lambda: train.run(config)) == 3
    assert "adamw8bit on a CPU, expected a CUDA GPU" in capsys.readouterr().err


def test_a_second_gpu_is_not_used_and_reported(tiny_run, tmp_path, monkeypatch, capsys):
    """DataParallel would cut a pack of one row; here the count of a machine with two GPUs is forced."""
    real = TrainingArguments.__post_init__

    def two_gpus(self):
        real(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", two_gpus)
    trainer = build(tiny_run, tmp_path)
    assert trainer.args.n_gpu == 1 and trainer._train_batch_size == 1
    assert "2 GPUs are visible, the run uses cpu: choose one by CUDA_VISIBLE_DEVICES" in capsys.readouterr().err
    assert train_losses(trainer)


@pytest.mark.parametrize(("capability", "fp16"), [((6, 0), True), ((6, 1), False)])
def test_mixed_precision_only_where_fp16_is_fast(tiny_run, tmp_path, monkeypatch, capability, fp16):
    """A P40 has 6.1. Only the GPU is replaced."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    arguments = training_arguments(tiny_run.train, tmp_path, torch.device("cuda"))
    assert (arguments.fp16, arguments.use_cpu) == (fp16, False)


def test_no_time_or_host_name_in_the_arguments(tiny_run, tmp_path):
    arguments = training_arguments(tiny_run.train, tmp_path, torch.device("cpu"))
    assert socket.gethostname() not in arguments.to_json_string()


def test_the_reference_quantizes_as_bitsandbytes_does_on_a_cpu():
    """Its CPU library has the quantization, not the optimizer."""
    from bitsandbytes import functional

    qmap = functional.create_dynamic_map(signed=True)
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 1e-3
    codes, absmax = torch.zeros(5000, dtype=torch.uint8), torch.zeros(20)
    adamw8bit.encode(values, codes, qmap, absmax)
    expected, state = functional.quantize_blockwise(values, code=qmap.clone(), blocksize=adamw8bit.BLOCK)
    assert torch.equal(absmax, state.absmax)
    assert (codes != expected).float().mean() < 1e-3
    restored = functional.dequantize_blockwise(expected, state)
    # its CPU code sets the first entry of the map to -1
    torch.testing.assert_close(adamw8bit.decode(expected, state.code, absmax), restored)
