"""The streaming writer and the reader against the safetensors library."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipe.checkpoints import safetensors
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.core.manifest import write_manifest


def lazy(name: str, tensor: torch.Tensor) -> LazyTensor:
    return LazyTensor(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def test_the_library_reads_the_shards_and_none_is_too_large(tmp_path: Path) -> None:
    state = {f"layer.{index}.é": torch.randn(index + 1, 33) for index in range(20)}
    shards = safetensors.plan([lazy(*item) for item in state.items()], torch.float16, limit=4000)
    seen: list[int] = []
    safetensors.write(tmp_path, shards, torch.float16, seen.append)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
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
    safetensors.write(tmp_path, [tensors], torch.float32, int)
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
        safetensors.open_file(path)


def test_any_dtype_is_stored_byte_for_byte_as_the_library_stores_it(tmp_path: Path) -> None:
    state = {
        "b/scale": torch.randn(3, 1),
        "a/weight": torch.arange(-3, 3, dtype=torch.int8).reshape(2, 3),
        "c": torch.randn(5).bfloat16(),
        "d": torch.randn(2, 2).half(),
        "e": torch.arange(7, dtype=torch.uint8),
        "f": torch.tensor(3.5),
    }
    ordered = safetensors.library_order(lazy(*item) for item in state.items())
    safetensors.write_file(tmp_path / "ours.safetensors", ordered)
    save_file(state, tmp_path / "library.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "library.safetensors").read_bytes()
    read = safetensors.open_file(tmp_path / "library.safetensors")
    assert all(torch.equal(read[name].read(), tensor) for name, tensor in state.items())
    assert all((read[name].shape, read[name].dtype) == (tuple(t.shape), t.dtype) for name, t in state.items())


def test_only_files_that_the_manifest_lists_are_read(tmp_path: Path) -> None:
    safetensors.write(tmp_path, [[lazy("a", torch.zeros(2))]], torch.float32, int)
    write_manifest(tmp_path, "convert", {}, {}, {})
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "z.safetensors")
    tensors = safetensors.open_folder(tmp_path)
    assert tensors.keys() == {"a"} and tensors["a"].read().tolist() == [0, 0]
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(RecipeError, match="holds a in two files"):
        safetensors.open_folder(tmp_path)


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        safetensors.write(tmp_path, [[lazy("a", torch.zeros(2))]], torch.float32, int)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
