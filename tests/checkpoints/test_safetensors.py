"""Our streaming writer against the safetensors library."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipe.checkpoints import hf, safetensors
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError


def lazy(name: str, tensor: torch.Tensor) -> LazyTensor:
    return LazyTensor(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def test_the_library_reads_the_shards_and_none_is_too_large(tmp_path: Path) -> None:
    state = {f"layer.{index}.é": torch.randn(index + 1, 33) for index in range(20)}
    shards = safetensors.plan([lazy(*item) for item in state.items()], torch.float16, limit=4000)
    seen: list[int] = []
    names = safetensors.write(tmp_path, shards, torch.float16, seen.append)
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert all((tmp_path / name).stat().st_size <= 4000 for name in names)
    read = {key: (name, value) for name in names for key, value in load_file(tmp_path / name).items()}
    assert all(torch.equal(read[key][1], tensor.half()) for key, tensor in state.items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {key: name for key, (name, _) in read.items()}
    assert index["metadata"]["total_size"] == sum(seen) == sum(tensor.numel() * 2 for tensor in state.values())


def test_one_shard_has_no_index_and_a_tensor_beyond_the_limit_its_own_file(tmp_path: Path) -> None:
    tensors = [lazy("a", torch.zeros(1)), lazy("b", torch.zeros(1000)), lazy("c", torch.zeros(1))]
    assert safetensors.write(tmp_path, [tensors], torch.float32, int) == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    shards = safetensors.plan(tensors, torch.float32, limit=300)
    assert [[tensor.name for tensor in shard] for shard in shards] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fp16_cannot_hold_is_named_with_its_size(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, -70000.0]).to(dtype)
    with pytest.raises(RecipeError, match=r"x\.weight holds 7.*e\+04.*--dtype fp32"):
        safetensors.cast(tensor, "x.weight", torch.float16)
    assert safetensors.cast(tensor, "x.weight", torch.float32).tolist() == tensor.tolist()
    assert safetensors.cast(torch.tensor([65504.0]), "x", torch.float16).tolist() == [65504.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    with pytest.raises(RecipeError, match=r"x\.weight holds values that are not finite"):
        safetensors.cast(torch.tensor([0.0, value]), "x.weight", dtype)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    safetensors.write(tmp_path, [[lazy("a", torch.zeros(100))]], torch.float32, int)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecipeError, match="truncated"):
        hf.read_safetensors(path)
