"""8-bit AdamW as the run uses it: bitsandbytes' own optimizer, only its CUDA kernel replaced by a reference."""

import dataclasses
from pathlib import Path

import pytest
import torch

from recipe import train
from recipe.core.cli import entry
from recipe.core.config import Train
from recipe.model.adapter import add_adapter
from recipe.model.load import load_base, load_tokenizer
from recipe.planning import memory
from recipe.training import dataset
from recipe.training.trainer import LoraTrainer, build_trainer

CPU = torch.device("cpu")
BLOCK = 256  # of bitsandbytes' blockwise moments


def optimizer_update_8bit_blockwise(
    name, g, p, state1, state2, beta1, beta2, beta3, alpha, eps, step, lr, qmap1, qmap2, absmax1, absmax2,
    weight_decay=0.0, gnorm_scale=1.0, skip_zeros=False,
):  # fmt: skip
    """What the CUDA kernel does: AdamW on moments that are 8-bit codes with a scale per block of 256."""
    assert name == "adam"
    first = decode(state1, qmap1, absmax1).mul_(beta1).add_(g, alpha=1 - beta1)
    second = decode(state2, qmap2, absmax2).mul_(beta2).add_(g * g, alpha=1 - beta2)
    p.mul_(1 - lr * weight_decay)
    p.addcdiv_(first, (second / (1 - beta2**step)).sqrt_().add_(eps), value=-lr / (1 - beta1**step))
    encode(first, state1, qmap1, absmax1)
    encode(second, state2, qmap2, absmax2)


def decode(codes, qmap, absmax):
    return qmap[codes.long()] * absmax.repeat_interleave(BLOCK)[: codes.numel()].view_as(codes)


def encode(values, codes, qmap, absmax):
    blocks = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    absmax.copy_(blocks.abs().amax(dim=1))
    scaled = (blocks / absmax[:, None].clamp_min(1e-30)).flatten()[: values.numel()]
    middles = (qmap[1:] + qmap[:-1]) / 2  # qmap ascends: the nearest entry is told by the middles below
    codes.copy_(torch.bucketize(scaled, middles).view_as(codes))


@pytest.fixture
def kernel(monkeypatch):
    from bitsandbytes import functional

    monkeypatch.setattr(functional, "optimizer_update_8bit_blockwise", optimizer_update_8bit_blockwise)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)  # what it ends a step with


def losses(config, folder: Path, rank: int) -> tuple[list[float], LoraTrainer]:
    lora = dataclasses.replace(config.lora, rank=rank, dropout=0.0, target_modules=("q_proj", "down_proj"))
    tuned = add_adapter(load_base(Path(config.base.path), "int8", CPU), lora, seed=0)
    rows = dataset.encode_file(
        Path(config.corpus.path) / "train.jsonl", load_tokenizer(Path(config.base.path)), config.corpus.template
    )
    loop = build_trainer(tuned, config.train, folder, rows, rows, on_card=False)
    loop.train()
    return [entry["loss"] for entry in loop.state.log_history if "loss" in entry], loop


def test_adamw8bit_learns_as_adamw_does_and_holds_what_the_plan_says(kernel, tiny_run, tmp_path):
    rank = 96  # matrices of 4,608 numbers and more: bitsandbytes keeps those below 4,096 in fp32
    plain, _ = losses(tiny_run, tmp_path / "32", rank)
    eight = dataclasses.replace(tiny_run, train=dataclasses.replace(tiny_run.train, optimizer="adamw8bit"))
    quantised, loop = losses(eight, tmp_path / "8", rank)
    assert quantised[-1] < 0.9 * quantised[0]
    assert quantised == pytest.approx(plain, rel=0.05)
    optimizer = loop.optimizer.optimizer
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name.startswith("state")]
    assert {value.dtype for value in moments} == {torch.uint8}
    trained = sum(parameter.numel() for parameter in loop.model.parameters() if parameter.requires_grad)
    assert sum(value.numel() for value in moments) == memory.OPTIMIZER_BYTES["adamw8bit"] * trained


def test_adamw8bit_resumes_to_the_bit(kernel, tiny_run, tmp_path):
    config = dataclasses.replace(
        tiny_run, train=dataclasses.replace(tiny_run.train, optimizer="adamw8bit", keep_checkpoints=99, save_steps=1)
    )
    _, loop = losses(config, tmp_path / "whole", 96)
    expected = {name: p.detach().clone() for name, p in loop.model.named_parameters() if p.requires_grad}
    _, again = losses(config, tmp_path / "again", 96)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / "checkpoint-2"))
    for name, parameter in again.model.named_parameters():
        assert name not in expected or torch.equal(parameter, expected[name]), name


def test_adamw8bit_on_a_cpu_says_what_it_needs_before_anything_is_read(tiny_run, capsys):
    config = dataclasses.replace(tiny_run, train=Train(optimizer="adamw8bit"))
    assert entry(lambda: train.run(config)) == 3
    assert "adamw8bit on a cpu, expected a CUDA card" in capsys.readouterr().err
