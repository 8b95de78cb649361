"""A quantized base: NF4 of bitsandbytes with reference kernels, and the copy on the disk that a start reads instead."""

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from recipe.core.errors import RecipeError, UnfitError
from recipe.core.files import MANIFEST
from recipe.core.manifest import read_manifest, save_manifest, verify
from recipe.core.run import quantized_folder
from recipe.model import load, quantized
from recipe.model.load import load_cached
from recipe.planning import memory
from tests.model import nf4

CPU = torch.device("cpu")


@pytest.fixture
def kernels(monkeypatch):
    """The three functions of bitsandbytes that call CUDA, replaced by a reference; all around them is the real one."""
    from bitsandbytes import functional

    for kernel in (nf4.quantize_4bit, nf4.dequantize_4bit, nf4.gemv_4bit):
        monkeypatch.setattr(functional, kernel.__name__, kernel)


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny model where its copies lie in nobody's way."""
    return Path(shutil.copytree(tiny_base, tmp_path / "weights" / "tiny"))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


def same_bits(one: nn.Module, two: nn.Module) -> bool:
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_nf4_is_close_to_the_original_and_half_a_byte_a_weight(kernels):
    weight = torch.randn(128, 256) * 0.02
    layer = quantized.linear(weight, "nf4", CPU, torch.float32)
    x = torch.randn(5, 256)
    expected = x @ weight.t()
    assert (layer(x) - expected).norm() / expected.norm() < 0.12  # four bits of a normal distribution
    assert (layer(x[:1]) - layer(x)[:1]).abs().max() < 1e-5
    assert layer.weight.numel() == weight.numel() // 2 and layer.weight.dtype == torch.uint8


def test_nf4_bytes_are_those_of_the_arithmetic(kernels):
    weight = torch.randn(512, 1024)
    layer = quantized.linear(weight, "nf4", CPU, torch.float32)
    state = layer.weight.quant_state
    held = sum(t.numel() * t.element_size() for t in (layer.weight, state.absmax, state.state2.absmax))
    assert held == pytest.approx(weight.numel() * memory.NF4_BYTES, rel=1e-3)


def test_nf4_gradients_are_those_of_the_dequantised_weight(kernels):
    layer = quantized.linear(torch.randn(64, 128), "nf4", CPU, torch.float32)
    weight = nf4.dequantize_4bit(layer.weight, layer.weight.quant_state)
    one, two = (torch.randn(3, 128).requires_grad_() for _ in range(2))
    two.data.copy_(one.data)
    layer(one).square().sum().backward()
    (two @ weight.t()).square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_nf4_on_a_cpu_says_what_it_needs():
    with pytest.raises(UnfitError, match=r"nf4 on cpu, expected a CUDA GPU.*set base\.precision = int8"):
        quantized.linear(torch.randn(64, 64), "nf4", CPU, torch.float32)


@pytest.mark.slow
def test_a_run_trains_on_nf4_and_its_base_stays(kernels, tiny_run, base, monkeypatch):
    from recipe import train

    monkeypatch.setattr(train, "check_requirements", lambda config, where: None)  # the kernels are not those of a card
    config = dataclasses.replace(tiny_run, base=dataclasses.replace(tiny_run.base, precision="nf4", path=str(base)))
    results = train.run(config)["results"]
    assert results["last_loss"] < results["first_loss"]
    found = quantized.find(base, "nf4")
    assert found, "the run left a copy of its base"


@pytest.mark.parametrize("precision", quantized.PRECISIONS)
def test_the_second_start_reads_the_copy_to_the_same_bits(kernels, base, precision, capsys, monkeypatch):
    first = load_cached(base, precision, CPU, quantized.find(base, precision))
    folder = quantized_folder(base, precision)
    assert f"wrote {folder}" in capsys.readouterr().err and verify(folder) == []
    monkeypatch.setattr(load, "read_tensors", lambda path: pytest.fail("the weights were read again"))
    second = load_cached(base, precision, CPU, quantized.find(base, precision))
    assert f"read {folder}" in capsys.readouterr().err
    assert same_bits(first, second) and torch.equal(logits(first), logits(second))


def test_an_nf4_copy_of_another_bitsandbytes_is_not_read(kernels, base, capsys, monkeypatch):
    load_cached(base, "nf4", CPU, quantized.find(base, "nf4"))
    assert quantized.find(base, "nf4")
    monkeypatch.setattr(quantized, "environment", lambda: {"bitsandbytes": "another version"})
    assert quantized.find(base, "nf4") is None
    assert "by other code or another bitsandbytes: it is written again" in capsys.readouterr().err


def test_the_copy_is_smaller_and_in_shards(base, monkeypatch):
    monkeypatch.setattr(quantized, "SHARD_BYTES", 20_000)
    first = load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    files = sorted(quantized_folder(base, "int8").glob("*.safetensors"))
    assert len(files) > 2
    assert sum(file.stat().st_size for file in files) < (base / "model.safetensors").stat().st_size
    assert same_bits(first, load_cached(base, "int8", CPU, quantized.find(base, "int8")))


def test_a_damaged_copy_is_said_and_made_again(base, capsys):
    first = load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    file = next(quantized_folder(base, "int8").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    capsys.readouterr()
    assert same_bits(first, load_cached(base, "int8", CPU, quantized.find(base, "int8")))
    said = capsys.readouterr().err
    assert "is damaged and written again" in said and "wrote" in said
    assert quantized.find(base, "int8")


def test_the_lock_of_a_killed_process_beside_the_copy_is_removed(base):
    load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    folder = quantized_folder(base, "int8")
    lock = folder.with_name(f".{folder.name}.lock")
    lock.touch()
    assert quantized.find(base, "int8") and not lock.exists()


def test_a_copy_of_other_weights_is_not_used(base, capsys):
    load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    manifest = read_manifest(base)
    manifest["outputs"]["model.safetensors"]["sha256"] = "0" * 64
    save_manifest(base / MANIFEST, manifest)
    capsys.readouterr()
    assert quantized.find(base, "int8") is None
    assert "made from other weights" in capsys.readouterr().err


def test_altered_weights_are_refused_and_leave_no_copy(base, capsys):
    file = base / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-2] + bytes(2))
    with pytest.raises(RecipeError, match=r"model\.safetensors was altered"):
        load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    assert not quantized_folder(base, "int8").exists()
    file.write_bytes(good)
    load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    assert quantized.find(base, "int8")


def test_a_file_that_no_manifest_lists_is_not_read(base):
    first = load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    for folder in (base, quantized_folder(base, "int8")):
        save_file({"model.norm.weight": torch.zeros(48)}, folder / "a.safetensors")
        save_file({"model.norm/weight": torch.zeros(48)}, folder / "b.safetensors")
    assert same_bits(first, load_cached(base, "int8", CPU, quantized.find(base, "int8")))
    shutil.rmtree(quantized_folder(base, "int8"))
    assert same_bits(first, load_cached(base, "int8", CPU, quantized.find(base, "int8")))


def test_another_folder_of_that_name_is_left_alone(base, capsys):
    folder = quantized_folder(base, "int8")
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"]
    assert "holds something else" in capsys.readouterr().err


def test_a_full_disk_costs_a_sentence_and_nothing_more(base, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recipe.checkpoints.safetensors.write_file", full)
    model = load_cached(base, "int8", CPU, quantized.find(base, "int8"))
    assert torch.isfinite(logits(model)).all()
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name for path in base.parent.iterdir()} == {base.name}
