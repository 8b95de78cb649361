"""torch.save's zip files (.pth, .bin), one tensor at a time and without executing anything in them.

The format (torch/serialization.py, caffe2/serialize/inline_container.h): a zip without compression; `<name>/data.pkl`
describes the tensors, `<name>/data/<key>` are the bytes of their storages. torch.load itself can be made to run code
even with weights_only=True (CVE-2025-32434), so it is not used.
"""

import functools
import io
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from recipe.checkpoints import pickled
from recipe.checkpoints.files import check_not_pointer
from recipe.checkpoints.pickled import StoredTensor
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # PKWARE APPNOTE 4.3.7
ENCRYPTED = 0x1
# what zipfile raises on damaged files, by fuzzing
ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    struct.error,
)
AGAIN = "save it again on a machine that may execute it, with torch 1.6 or later and torch.save(state_dict, path)"


@dataclass(frozen=True)
class _Member:
    """Bytes of a zip's member: from `start` in the file, `size` of them."""

    start: int
    size: int
    crc: int


def read(path: Path) -> dict[str, LazyTensor]:
    """Name -> tensor of a checkpoint that torch.save wrote (torch 1.6 or later).

    Every place is checked against the file here, so that reading a tensor cannot leave its storage or need more memory
    than the file has bytes. Raises RecipeError: missing, truncated, damaged, of another format, or not only tensors.
    """
    path = Path(path)
    members = _members(path)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise RecipeError(f"{path} is a zip with {len(pickles)} data.pkl, expected the one of torch.save: {AGAIN}")
    prefix = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{prefix}byteorder")
    if order and (order.size != len(b"little") or _bytes(path, order) != b"little"):
        raise RecipeError(f"{path} was written on a big-endian machine, or is damaged: {AGAIN}")
    pickled.check_size(members[pickles[0]].size, f"{path}")  # before it is read: a hole in a file can have any size
    stored = pickled.read(_bytes(path, members[pickles[0]]), path=f"{path}")
    tensors = {}
    for name, tensor in stored.items():
        member = members.get(f"{prefix}data/{tensor.key}")
        if member is None:
            raise RecipeError(f"{path} lacks the bytes of {snippet(name)}: it is incomplete, download it again")
        _check_place(tensor, member, path, name)
        dtype = getattr(torch, tensor.dtype)
        tensors[name] = LazyTensor(name, tensor.shape, dtype, functools.partial(_tensor, path, tensor, member, dtype))
    return tensors


def _members(path: Path) -> dict[str, _Member]:
    """Name -> place of every member of the zip, after checks that no two of them share a name or a byte."""
    check_not_pointer(path)
    with open(path, "rb") as file:
        start = file.read(4)
        if start[:2] == b"\x80\x02":
            raise RecipeError(f"{path} has the format of torch before 1.6, which only executing it can read: {AGAIN}")
        if start != b"PK\x03\x04":
            raise RecipeError(f"{path} is not a torch checkpoint: it does not begin as a zip file does")
        try:
            with zipfile.ZipFile(file) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                members = {entry.filename: _member(file, entry, path) for entry in entries}
                end = archive.start_dir
        except ZIP_ERRORS as error:
            raise RecipeError(f"{path} is truncated or damaged ({snippet(error)}): download it again") from None
    if len(members) != len(entries):
        raise RecipeError(f"{path} holds two members of one name, which torch.save never writes: it is refused")
    last = 0
    for member in sorted(members.values(), key=lambda member: (member.start, member.size)):
        if member.start < last or member.start + member.size > end:
            raise RecipeError(f"{path} is damaged: its members overlap; download it again")
        last = member.start + member.size
    return members


def _member(file: io.BufferedReader, entry: zipfile.ZipInfo, path: Path) -> _Member:
    """Where the bytes begin: after the local header, whose padding the directory at the end does not tell."""
    name = snippet(entry.filename)
    if (
        entry.flag_bits & ENCRYPTED
        or entry.compress_type != zipfile.ZIP_STORED
        or entry.compress_size != entry.file_size
    ):
        raise RecipeError(f"{path} holds {name} compressed or encrypted, which torch.save never does: {AGAIN}")
    if entry.header_offset < 0:
        raise zipfile.BadZipFile("a member begins before the file does")
    header = os.pread(file.fileno(), LOCAL_HEADER.size, entry.header_offset)
    magic, *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
    if magic != b"PK\x03\x04":
        raise RecipeError(f"{path} is damaged: {name} has no header; download it again")
    return _Member(entry.header_offset + LOCAL_HEADER.size + name_length + extra_length, entry.file_size, entry.CRC)


def _check_place(tensor: StoredTensor, member: _Member, path: Path, name: str) -> None:
    """Raises RecipeError unless every element is in the storage, and the tensor is not larger than its file."""
    itemsize = _itemsize(tensor.dtype)
    numbers = (tensor.offset, tensor.storage_numel, *tensor.shape, *tensor.stride)
    honest = len(tensor.shape) == len(tensor.stride) <= 8 and min(numbers) >= 0
    honest = honest and tensor.storage_numel * itemsize <= member.size
    honest = honest and tensor.offset + _span(tensor) <= tensor.storage_numel
    most = itemsize * math.prod(max(size, 1) for size in tensor.shape)
    if not honest or most > path.stat().st_size:
        raise RecipeError(
            f"{path} is damaged or forged: {snippet(name)} with the shape {snippet(list(tensor.shape))} "
            "is not within its bytes; download it again"
        )


@functools.cache
def _itemsize(dtype: str) -> int:
    return torch.empty(0, dtype=getattr(torch, dtype)).element_size()


def _span(tensor: StoredTensor) -> int:
    """Elements of the storage from the first to the last of the tensor, both included."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride, strict=True))


def _tensor(path: Path, tensor: StoredTensor, member: _Member, dtype: torch.dtype) -> torch.Tensor:
    span, itemsize = _span(tensor), _itemsize(tensor.dtype)
    if span == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    place = _Member(member.start + tensor.offset * itemsize, span * itemsize, member.crc)
    # the checksum is one over the whole storage: a view into a larger one cannot be checked
    data = _bytes(path, place, check=place.size == member.size)
    return torch.frombuffer(data, dtype=dtype).as_strided(tensor.shape, tensor.stride).contiguous()


def _bytes(path: Path, member: _Member, check: bool = True) -> bytearray:
    """Read, not mapped: mapped pages would count as this process's memory until the file is closed."""
    data = bytearray(member.size)
    view, done = memoryview(data), 0
    with open(path, "rb", buffering=0) as file:
        file.seek(member.start)
        while done < member.size:
            count = file.readinto(view[done : done + (64 << 20)])
            if not count:
                raise RecipeError(f"{path} is truncated: download it again")
            done += count
    if check and zlib.crc32(data) != member.crc:
        raise RecipeError(
            f"{path} is damaged: the checksum of its bytes at {member.start:,} is wrong; download it again"
        )
    return data
