"""A checkpoint that torch.load reads, written with one tensor in memory at a time.

torch.save wants the whole state dict in memory (or mapped), 13.5 GB for LLaMA-7B. The file is a zip of a pickle and the
tensors' bytes (torch/serialization.py), so both are written here.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError

STORAGES = {torch.float16: torch.HalfStorage, torch.bfloat16: torch.BFloat16Storage, torch.float32: torch.FloatStorage}
CHUNK = 64 << 20


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


class _Pickler(pickle.Pickler):
    """Writes a LazyTensor as torch.save writes a tensor."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return "storage", STORAGES[obj.dtype], obj.key, "cpu", obj.numel
        return None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Keyed):
            return NotImplemented
        tensor = obj.tensor
        storage = _Storage(obj.key, tensor.dtype, tensor.numel)
        strides = tuple(torch.empty(tensor.shape, device="meta").stride())
        return torch._utils._rebuild_tensor_v2, (storage, 0, tensor.shape, strides, False, OrderedDict())


@dataclass(frozen=True)
class _Keyed:
    key: str
    tensor: LazyTensor


def write(path: Path, tensors: Sequence[LazyTensor]) -> None:
    """Write a state dict of fp16, bf16 or fp32 tensors, under their names and in their order."""
    described = io.BytesIO()
    _Pickler(described, protocol=2).dump({tensor.name: _Keyed(str(key), tensor) for key, tensor in enumerate(tensors)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _member(archive, f"{path.stem}/data.pkl", memoryview(described.getvalue()))
        _member(archive, f"{path.stem}/byteorder", memoryview(b"little"))
        for key, tensor in enumerate(tensors):
            data = tensor.read().contiguous()
            if (tuple(data.shape), data.dtype) != (tensor.shape, tensor.dtype):
                raise RecipeError(f"{tensor.name} is {list(data.shape)} once read, expected {list(tensor.shape)}")
            # as bytes, because numpy has no bf16
            _member(archive, f"{path.stem}/data/{key}", data.reshape(-1).view(torch.uint8).numpy().data)
        _member(archive, f"{path.stem}/version", memoryview(b"3\n"))


def _member(archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    """One member, with the date that a zip file begins at: the same tensors make the same bytes."""
    info = zipfile.ZipInfo(name)
    info.file_size = len(data)  # from it zipfile knows whether the header needs 64-bit sizes
    with archive.open(info, "w") as file:
        for start in range(0, len(data), CHUNK):
            file.write(data[start : start + CHUNK])
