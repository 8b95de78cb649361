"""Tensors to .safetensors shards with one tensor in memory at a time.

safetensors' own save_file wants a whole shard in memory, which with 2 GB shards breaks the 2.5 GB that a conversion may
take. The format is a length, a JSON header and bytes (https://huggingface.co/docs/safetensors), so it is written here.
"""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import torch

from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError

SHARD_BYTES = 2_000_000_000
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
NAMES = {torch.float16: "F16", torch.float32: "F32"}
Progress = Callable[[int], object]


def plan(tensors: Sequence[LazyTensor], dtype: torch.dtype, limit: int = SHARD_BYTES) -> list[list[LazyTensor]]:
    """The tensors, in their order, cut into shards whose files have at most `limit` bytes.

    A single tensor beyond the limit, as the fp32 embedding of a very large vocabulary, gets a file of its own.
    """
    shards: list[list[LazyTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and len(_header([*shards[-1], tensor], dtype)) + size([*shards[-1], tensor], dtype) > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def size(tensors: Sequence[LazyTensor], dtype: torch.dtype) -> int:
    """Bytes of the tensors when stored as `dtype`."""
    return sum(tensor.numel for tensor in tensors) * torch.empty(0, dtype=dtype).element_size()


def file_names(count: int) -> list[str]:
    """As transformers names them: one file, or numbered shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write(folder: Path, shards: Sequence[Sequence[LazyTensor]], dtype: torch.dtype, progress: Progress) -> list[str]:
    """Write the shards as `dtype`, and the index if there are several; `progress` gets the bytes of each tensor.

    Returns the file names. Raises RecipeError on a value that is not finite, in the source or once it is fp16.
    """
    names = file_names(len(shards))
    for name, tensors in zip(names, shards, strict=True):
        with open(folder / name, "wb") as file:
            file.write(_header(tensors, dtype))
            for tensor in tensors:
                _write_tensor(file, tensor, dtype)
                progress(size([tensor], dtype))
    if len(names) > 1:
        weight_map = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        total = sum(size(tensors, dtype) for tensors in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names


def cast(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` as `dtype`, contiguous. Raises RecipeError where a value is not finite, or becomes so."""
    out = tensor.to(dtype).contiguous()
    if _finite(out):
        return out
    if not _finite(tensor):
        raise RecipeError(
            f"{name} holds values that are not finite: the checkpoint is damaged, or its training had failed"
        )
    largest = tensor.abs().max().item()
    raise RecipeError(f"{name} holds {largest:.4g}, more than the 65504 that fp16 can hold: convert with --dtype fp32")


def _finite(tensor: torch.Tensor) -> bool:
    """In slices, so that it needs no memory of the tensor's size."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(1 << 22))


def _header(tensors: Sequence[LazyTensor], dtype: torch.dtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + size([tensor], dtype)
        entries[tensor.name] = {"dtype": NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    return struct.pack("<Q", len(text)) + text


def _write_tensor(file: IO[bytes], tensor: LazyTensor, dtype: torch.dtype) -> None:
    data = cast(tensor.read(), tensor.name, dtype)
    if tuple(data.shape) != tensor.shape:
        raise RecipeError(
            f"{tensor.name} has the shape {list(data.shape)} once read, its file said {list(tensor.shape)}"
        )
    file.write(data.numpy().data)
