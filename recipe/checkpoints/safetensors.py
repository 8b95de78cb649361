"""Folders of .safetensors files: read tensor by tensor, and written with one tensor in memory at a time.

The library's save_file needs a whole shard in memory, which with 2 GB shards exceeds the 2.5 GB that a conversion may
take, and it leaves files that only their owner can read. The format is a length, a JSON header and bytes
(https://huggingface.co/docs/safetensors), so it is written here. Reading is the library's.
"""

import functools
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

import torch

from recipe.checkpoints.files import check_not_pointer, listed_files
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

SHARD_BYTES = 2_000_000_000
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
# narrow to wide: the library stores wide dtypes first, so that every tensor begins at a multiple of its item size
NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
STORED = {name: dtype for dtype, name in NAMES.items()}
INDEX = "model.safetensors.index.json"
Progress = Callable[[int], object]


def open_folder(folder: Path) -> dict[str, LazyTensor]:
    """Name -> tensor of all .safetensors files of a folder; only the files that its manifest lists, if it has one.

    Raises RecipeError: no such file, a damaged one, one name in two files.
    """
    tensors: dict[str, LazyTensor] = {}
    for shard in open_shards(folder):
        if twice := tensors.keys() & shard.keys():
            raise RecipeError(f"{folder} holds {snippet(min(twice))} in two files: remove the one that does not belong")
        tensors |= shard
    return tensors


def open_shards(folder: Path) -> list[dict[str, LazyTensor]]:
    """The tensors of each file of `open_folder`, files in the order of their names."""
    return [open_file(file) for file in weight_files(folder)]


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files of a folder, by name: those that its manifest lists, or all if it has no manifest."""
    folder = Path(folder)
    listed = listed_files(folder)
    names = [file.name for file in folder.glob("*.safetensors")] if listed is None else listed
    files = sorted(folder / name for name in names if name.endswith(".safetensors") and "/" not in name)
    if not files:
        raise RecipeError(f"{folder} holds no .safetensors file: run `python -m recipe.convert` first")
    return files


def open_file(path: Path) -> dict[str, LazyTensor]:
    """Name -> tensor of one file. Raises RecipeError: missing, truncated, damaged, a dtype that torch lacks."""
    from safetensors import SafetensorError, safe_open

    check_not_pointer(path)
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                view = file.get_slice(name)
                dtype, shape = STORED.get(view.get_dtype()), tuple(view.get_shape())
                if dtype is None:
                    raise RecipeError(
                        f"{path}: {snippet(name)} is stored as {view.get_dtype()}, expected F16, BF16 or F32: "
                        "convert the original checkpoint"
                    )
                tensors[name] = LazyTensor(name, shape, dtype, functools.partial(_read, path, name))
    except SafetensorError as error:
        raise RecipeError(f"{path} is truncated or damaged ({snippet(error)}): download it again") from None
    return tensors


def _read(path: Path, name: str) -> torch.Tensor:
    """Opens the file for each tensor and copies: mapped pages count as this process's memory until it is closed."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


def plan(tensors: Sequence[LazyTensor], dtype: torch.dtype | None, limit: int = SHARD_BYTES) -> list[list[LazyTensor]]:
    """The tensors, in their order, cut into shards whose files have at most `limit` bytes.

    A single tensor beyond the limit, such as the fp32 embedding of a very large vocabulary, gets a file of its own.
    """
    shards: list[list[LazyTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and len(_header([*shards[-1], tensor], dtype)) + size([*shards[-1], tensor], dtype) > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def size(tensors: Iterable[LazyTensor], dtype: torch.dtype | None) -> int:
    """Bytes of the tensors when stored as `dtype` (None: each as its own)."""
    return sum(tensor.numel * _itemsize(dtype or tensor.dtype) for tensor in tensors)


@functools.cache
def _itemsize(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


def library_order(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    """The order in which the safetensors library stores tensors: wide dtypes first, then by name."""
    widths = {dtype: rank for rank, dtype in enumerate(reversed(NAMES))}
    return sorted(tensors, key=lambda tensor: (widths[tensor.dtype], tensor.name))


def file_names(count: int) -> list[str]:
    """As transformers names them: one file, or numbered shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write(folder: Path, shards: Sequence[Sequence[LazyTensor]], dtype: torch.dtype | None, progress: Progress) -> None:
    """Write the shards as `dtype` (None: each tensor as its own), and an index if there are several.

    `progress` gets the bytes of each tensor. Raises RecipeError on a value that is not finite, in the source or once
    it is fp16.
    """
    names = file_names(len(shards))
    for name, tensors in zip(names, shards, strict=True):
        write_file(folder / name, tensors, dtype, progress)
    if len(names) > 1:
        weight_map = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        total = sum(size(tensors, dtype) for tensors in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(
    path: Path, tensors: Sequence[LazyTensor], dtype: torch.dtype | None = None, progress: Progress = lambda size: None
) -> None:
    """Write one file, with the umask's mode, tensors in the given order; see `write`.

    If dtypes differ, pass the tensors in `library_order`: readers map a tensor only at a multiple of its item size.
    """
    with open(path, "wb") as file:
        file.write(_header(tensors, dtype))
        for tensor in tensors:
            _write_tensor(file, tensor, dtype or tensor.dtype)
            progress(size([tensor], dtype))


def cast(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` as `dtype`, contiguous. Raises RecipeError if a value is not finite, or fp16 cannot hold it."""
    out = tensor.to(dtype).contiguous()
    if not dtype.is_floating_point or _finite(out):
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


def _header(tensors: Sequence[LazyTensor], dtype: torch.dtype | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + size([tensor], dtype)
        stored = NAMES[dtype or tensor.dtype]
        entries[tensor.name] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    return struct.pack("<Q", len(text)) + text


def _write_tensor(file: IO[bytes], tensor: LazyTensor, dtype: torch.dtype) -> None:
    data = cast(tensor.read(), tensor.name, dtype)
    if tuple(data.shape) != tensor.shape:
        raise RecipeError(f"{tensor.name} has the shape {list(data.shape)} once read, expected {list(tensor.shape)}")
    file.write(data.reshape(-1).view(torch.uint8).numpy().data)  # as bytes, because numpy has no bf16
