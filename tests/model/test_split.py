"""A base on several devices gives the numbers of one. Two of a CPU, and meta for what cannot be seen there."""

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate.utils import check_device_map
from transformers import LlamaConfig

from recipe import train
from recipe.core.errors import UnfitError
from recipe.core.files import sha256
from recipe.core.run import Run
from recipe.model import load, split
from recipe.model import open as opening
from recipe.model.adapter import ADAPTER_FILE, add_adapter
from recipe.model.likelihood import causal_lm, pack_token_nll, trained_nll
from recipe.model.load import empty_model, load_base, load_tokenizer, split_devices
from recipe.model.prepare import prepare_for_training
from recipe.training import setup
from recipe.training.dataset import PackedDataset, encode_file
from recipe.training.selection import trained_parameters

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def pack(tiny_base, tiny_corpus):
    """Several conversations with a common prefix."""
    rows = encode_file(tiny_corpus / "train.jsonl", load_tokenizer(tiny_base), "vicuna_v1.1")
    pack = PackedDataset(rows, 256)[0]
    assert len(pack["lengths"]) > 1 and pack["prefix"]
    return pack


def step(base, lora, pack, recompute: int) -> dict[str, torch.Tensor]:
    """The loss and all gradients of a training step."""
    model = add_adapter(base, lora, seed=0).train()
    prepare_for_training(model, recompute)
    torch.manual_seed(0)
    with torch.no_grad():  # B = 0 would leave A without a gradient
        for parameter in trained_parameters(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.device))
    loss, _ = trained_nll(model, pack)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in trained_parameters(model).items()}


@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_a_step_on_two_devices_is_that_on_one_to_the_bit(tiny_base, tiny_run, pack, recompute):
    one = step(load_base(tiny_base, "int8", CPU), tiny_run.lora, pack, recompute)
    two = step(load_base(tiny_base, "int8", [CPU, CPU]), tiny_run.lora, pack, recompute)
    assert one.keys() == two.keys() and len(one) == 1 + 2 * 2 * 3
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(value.abs().max() > 0 for value in one.values())


def test_a_run_on_two_devices_is_the_same_run(tiny_run, trained_once, pack, monkeypatch, capsys):
    for module in (load, setup, opening):
        monkeypatch.setattr(module, "split_devices", lambda device, count: [CPU] * count)
    config = dataclasses.replace(tiny_run, base=dataclasses.replace(tiny_run.base, split=2))
    train.run(config)
    assert "on cpu and cpu" in capsys.readouterr().err
    one, two = (Run(Run.latest(config).resolve()) for config in (trained_once, tiny_run))
    assert one.folder.name == two.folder.name, "the run's id"
    assert sha256(one.adapter / ADAPTER_FILE) == sha256(two.adapter / ADAPTER_FILE)
    models = [opening.open_run(run, each).model for run, each in ((one, trained_once), (two, config))]
    assert pack_token_nll(models[0], pack) == pack_token_nll(models[1], pack)
    assert len(split.groups(causal_lm(models[1]))) == 1 and hasattr(causal_lm(models[1]), "hf_device_map")


def test_everything_a_layer_is_called_with_moves_to_its_device(tiny_base, pack):
    """Hidden states, positions and rotary angles; a layer on the meta device takes no tensor of another."""
    model = load_base(tiny_base, "fp32", CPU)
    places = split.device_map(2, [CPU, META])
    model.model.layers[1].to(META)
    split.connect(model, places)
    prepare_for_training(model)
    outputs = []
    model.model.layers[1].register_forward_hook(lambda module, arguments, output: outputs.append(output[0]))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # back to the norm on the CPU
        pack_token_nll(model, pack)
    assert outputs[0].device == META and outputs[0].shape == (1, pack["input_ids"].shape[1], 48)


def test_generation_on_two_devices_is_that_on_one(tiny_base):
    ids = torch.tensor([[1, 5, 9, 12]])
    one, two = (
        load_base(tiny_base, "int8", devices).generate(ids, max_new_tokens=8, do_sample=False)
        for devices in (CPU, [CPU, CPU])
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize(("layers", "gpus"), [(40, 2), (60, 2), (60, 4), (5, 3), (2, 2)])
def test_the_map_is_one_of_accelerates(layers, gpus):
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=layers)
    model = empty_model(config)
    devices = [torch.device("cuda", number) for number in range(gpus)]
    places = split.device_map(layers, devices)
    check_device_map(model, places)
    held = [[name for name in places if ".layers." in name and places[name] == device] for device in devices]
    assert sum(map(len, held)) == layers and len(held[0]) == min(map(len, held)) >= max(map(len, held)) - 1
    assert split.device_of("model.layers.1.mlp.up_proj.weight", places) == places["model.layers.1"]
    assert {split.device_of(name, places) for name in ("lm_head.weight", "model.norm.weight", "odd")} == {devices[0]}


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [0]), (3, [0, 1, 3]), (4, [0, 1, 3, 4]), (6, list(range(6)))]
)
def test_each_gpu_recomputes_its_first_layers(count, expected):
    model = empty_model(LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=6))
    split.connect(model, split.device_map(6, [CPU, META]))
    prepare_for_training(model.requires_grad_(False), count)
    layers = model.model.layers
    assert [number for number, layer in enumerate(layers) if "forward" in layer.__dict__] == expected


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_gpu_too_few_is_one_sentence(tiny_run, monkeypatch, gpus):
    if gpus:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = dataclasses.replace(tiny_run, base=dataclasses.replace(tiny_run.base, split=2))
    with pytest.raises(UnfitError, match=rf"^found {gpus} visible GPUs?, expected the 2 of base\.split: add GPUs, or"):
        train.run(config)
    assert not Path(config.runs).exists()


def test_one_device_needs_no_gpu():
    assert split_devices(CPU, 1) == [CPU]
