"""Which GPU architectures a shared library carries code for, read from its CUDA fat binaries: no GPU, no toolkit.

nvcc puts device code into the section `.nv_fatbin`: containers one after another, each a 16-byte header and entries,
each of these a header and a payload: a cubin (SASS: machine code of one architecture) or PTX (compiled by the driver
when it is loaded). `__nv_relfatbin` has the same form and holds what the device linker read. `.nvFatBinSegment` has a
24-byte wrapper for every fat binary that the library hands to the CUDA runtime. The counts are those of `cuobjdump`.
Code that a program keeps in its own data and loads by itself is not seen.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from elftools.elf.elffile import ELFFile

LINKED, RELOCATABLE, WRAPPERS = ".nv_fatbin", "__nv_relfatbin", ".nvFatBinSegment"
FATBIN_MAGIC, WRAPPER_MAGIC = 0xBA55ED50, 0x466243B1
PTX, SASS = 1, 2  # an entry's kind; others (LTO bitcode, debug data) are no code that a driver loads

_CONTAINER = struct.Struct("<IHHQ")  # magic, version, header bytes, bytes of all entries
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, version, header bytes, payload bytes, ..., architecture
_ENTRY_HEADER = 64  # its shortest form: names and the decompressed size may follow
_WRAPPER = struct.Struct("<IIQQ")  # magic, version, two pointers that only the dynamic linker fills


@dataclass(frozen=True)
class DeviceCode:
    """What one library carries: {60: 259} means 259 code objects for sm_60 (compute_60 for PTX)."""

    sass: dict[int, int] = field(default_factory=dict)
    ptx: dict[int, int] = field(default_factory=dict)
    relocatable_sass: dict[int, int] = field(default_factory=dict)
    relocatable_ptx: dict[int, int] = field(default_factory=dict)
    registered: int = 0  # fat binaries handed to the CUDA runtime when the library is loaded


def read(path: Path) -> DeviceCode:
    """The device code inside a shared object; empty where it has none.

    Only headers are touched, so a library of a gigabyte takes milliseconds. Static archives are not read.
    Raises ValueError: not an ELF file, or one that is cut off or damaged.
    """
    with open(path, "rb") as file:
        if not file.read(1):
            raise ValueError(f"{path} is empty, expected a shared library")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None


def count(data: bytes | mmap.mmap, start: int, end: int) -> tuple[dict[int, int], dict[int, int]]:
    """SASS and PTX code objects per architecture in the fat binaries that fill data[start:end].

    Raises ValueError where a header is not one or points outside its container.
    """
    found: dict[int, Counter[int]] = {SASS: Counter(), PTX: Counter()}
    for first, last in _containers(data, start, end):
        for kind, architecture in _entries(data, first, last):
            if kind in found:
                found[kind][architecture] += 1
    return dict(sorted(found[SASS].items())), dict(sorted(found[PTX].items()))


def _containers(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where each container's entries begin and end."""
    while start < end:
        if start + _CONTAINER.size > end:
            raise ValueError(f"a fat binary's header is cut off at byte {start}, expected {_CONTAINER.size} bytes")
        magic, _, header, size = _CONTAINER.unpack_from(data, start)
        if magic != FATBIN_MAGIC or header < _CONTAINER.size:
            raise ValueError(f"no fat binary at byte {start}: found {magic:#x}, expected {FATBIN_MAGIC:#x}")
        first, start = start + header, start + header + size
        if start > end:
            raise ValueError(f"a fat binary ends at byte {start}, beyond its section's end at {end}")
        yield first, start


def _entries(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Kind and architecture of each entry."""
    while start < end:
        if start + _ENTRY_HEADER > end:
            raise ValueError(f"a fat binary's entry is cut off at byte {start}, expected {_ENTRY_HEADER} bytes")
        kind, _, header, size, _, _, _, _, architecture = _ENTRY.unpack_from(data, start)
        if header < _ENTRY_HEADER or start + header + size > end:
            raise ValueError(f"the fat binary entry at byte {start} has impossible sizes: {header} + {size}")
        yield kind, architecture
        start += header + size


def _parse(data: mmap.mmap) -> DeviceCode:
    found: dict[str, tuple[Counter[int], Counter[int]]] = {
        LINKED: (Counter(), Counter()),
        RELOCATABLE: (Counter(), Counter()),
    }
    registered = 0
    for name, start, end in _sections(data):
        if name == WRAPPERS:
            registered += _wrappers(data, start, end)
        else:
            for total, part in zip(found[name], count(data, start, end), strict=True):
                total.update(part)
    (sass, ptx), (relocatable_sass, relocatable_ptx) = found[LINKED], found[RELOCATABLE]
    return DeviceCode(dict(sass), dict(ptx), dict(relocatable_sass), dict(relocatable_ptx), registered)


def _wrappers(data: mmap.mmap, start: int, end: int) -> int:
    last = end - _WRAPPER.size
    return sum(_WRAPPER.unpack_from(data, at)[0] == WRAPPER_MAGIC for at in range(start, last + 1, _WRAPPER.size))


def _sections(data: mmap.mmap) -> list[tuple[str, int, int]]:
    """Name, first byte and end of each CUDA section."""
    if data[:4] != b"\x7fELF":
        raise ValueError(f"found {data[:4]!r} at its start, expected an ELF file")
    try:
        sections = list(ELFFile(cast(IO[bytes], data)).iter_sections())  # a mmap reads, seeks and tells
        found = [
            (section.name, section["sh_offset"], section["sh_offset"] + section["sh_size"])
            for section in sections
            if section.name in (LINKED, RELOCATABLE, WRAPPERS)
        ]
    except Exception as error:  # on damaged headers pyelftools raises whatever its parser runs into
        raise ValueError(f"its ELF headers are damaged or cut off ({type(error).__name__}: {error})") from None
    if not sections:
        raise ValueError("it has no section headers, so what it carries cannot be told")
    if sum(end - start for _, start, end in found) > len(data) or any(end > len(data) for _, _, end in found):
        raise ValueError(f"its sections reach beyond its {len(data)} bytes: it is cut off, or they overlap")
    return found
