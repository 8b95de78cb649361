"""Fat binaries of the very libraries that the lock installs, held against what NVIDIA's cuobjdump counts."""

import os
import re
import shutil
import struct
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.environment import fatbin

SITE = Path(sysconfig.get_path("purelib"))
BITSANDBYTES = SITE / "bitsandbytes" / "libbitsandbytes_cuda117_nocublaslt.so"
STUB = SITE / "nvidia" / "cufft" / "lib" / "libcufftw.so.10"
NO_DEVICE_CODE = SITE / "bitsandbytes" / "libbitsandbytes_cpu.so"


def cut(library: Path, section: str = fatbin.LINKED) -> bytes:
    """The bytes of one section, found by pyelftools."""
    with open(library, "rb") as file:
        return ELFFile(file).get_section_by_name(section).data()


def entry(kind: int, architecture: int, payload: int, header: int = 64) -> bytes:
    """One entry as `fatbinary` writes it, with a payload of zeros."""
    return struct.pack("<HHIQIIHHI", kind, 0x101, header, payload, 0, 0, 7, 1, architecture).ljust(
        header + payload, b"\0"
    )


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", fatbin.FATBIN_MAGIC, 1, 16, len(body)) + body


def test_torch_carries_259_code_objects_for_each_architecture_and_no_ptx():
    code = fatbin.read(SITE / "torch" / "lib" / "libtorch_cuda.so")
    assert code.sass == dict.fromkeys((37, 50, 60, 70, 75, 80, 86), 259)
    assert (code.ptx, code.registered) == ({}, 259)


def test_the_bitsandbytes_library_for_this_card():
    code = fatbin.read(BITSANDBYTES)
    assert code.sass == dict.fromkeys((50, 52, 60, 61, 70, 75, 80, 86), 1)
    assert code.ptx == {}
    assert code.relocatable_sass == dict.fromkeys((50, 52, 60, 61, 70, 75, 80, 86), 2)
    assert code.relocatable_ptx == {86: 2}


def test_a_stub_is_registered_nowhere_and_other_libraries_are_empty():
    assert fatbin.read(STUB) == fatbin.DeviceCode(sass={52: 1})
    assert fatbin.read(NO_DEVICE_CODE) == fatbin.DeviceCode()
    assert fatbin.read(SITE / "torch" / "lib" / "libtorch_cpu.so") == fatbin.DeviceCode()


def test_a_fat_binary_cut_out_of_a_library_counts_the_same():
    data = cut(BITSANDBYTES)
    code = fatbin.read(BITSANDBYTES)
    assert fatbin.count(data, 0, len(data)) == (code.sass, code.ptx)
    assert fatbin.count(b"xyz" + data, 3, 3 + len(data)) == (code.sass, code.ptx)


def test_kinds_longer_headers_and_several_containers():
    data = container(entry(2, 60, 8), entry(1, 60, 16, header=80)) + container(entry(2, 60, 0), entry(8, 75, 24))
    assert fatbin.count(data, 0, len(data)) == ({60: 2}, {60: 1})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("torch/lib/libtorch_cuda.so", marks=pytest.mark.slow),
        "torch/lib/libtorch_cuda_linalg.so",
        "bitsandbytes/libbitsandbytes_cuda117_nocublaslt.so",
        "nvidia/curand/lib/libcurand.so.10",
        "nvidia/nccl/lib/libnccl.so.2",
        "nvidia/cufft/lib/libcufftw.so.10",
    ],
)
def test_cuobjdump_counts_the_same(name: str):
    code = fatbin.read(SITE / name)
    assert cuobjdump("--list-elf", SITE / name) == code.sass
    assert cuobjdump("--list-ptx", SITE / name) == code.ptx
    every = Counter(code.sass) + Counter(code.relocatable_sass)
    assert cuobjdump("--all-fatbin", "--list-elf", SITE / name) == every


def cuobjdump(*arguments: str | Path) -> dict[int, int]:
    tool = os.environ.get("CUOBJDUMP") or shutil.which("cuobjdump")
    if not tool:
        pytest.skip("no cuobjdump on PATH or in CUOBJDUMP: this comparison was not made")
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    if "fatal" in done.stderr:  # releases from 13 on refuse what they no longer know: sm_35, sm_37
        pytest.skip(f"this cuobjdump is too new for the library: {done.stderr.strip()}")
    return dict(Counter(int(found) for found in re.findall(r"\.sm_(\d+)\w?\.(?:cubin|ptx)", done.stdout)))


def test_every_way_of_cutting_a_fat_binary_off_is_an_error():
    data = container(entry(2, 60, 8), entry(1, 60, 8))
    for end in range(1, len(data)):
        with pytest.raises(ValueError, match=r"cut off|ends at byte"):
            fatbin.count(data[:end], 0, end)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (container(entry(2, 60, 8))[:8] + b"\xff" * 8, "beyond its section's end"),
        (container(struct.pack("<HHIQIIHHI", 2, 0x101, 0, 0, 0, 0, 7, 1, 60).ljust(64, b"\0")), "impossible sizes"),
        (container(struct.pack("<HHIQIIHHI", 2, 0x101, 64, 2**64 - 1, 0, 0, 7, 1, 60).ljust(64, b"\0")), "impossible"),
        (b"\0" * 64, "no fat binary at byte 0: found 0x0"),
        (struct.pack("<IHHQ", fatbin.FATBIN_MAGIC, 1, 0, 0), "no fat binary"),
    ],
    ids=["size beyond the end", "entry without a size", "entry size overflows", "zeros", "container without a size"],
)
def test_impossible_sizes_neither_hang_nor_read_out_of_range(data: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        fatbin.count(data, 0, len(data))


@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_end_in_counts_or_a_value_error(data: bytes, with_header: bool):
    if with_header:
        data = container(data)
    try:
        sass, ptx = fatbin.count(data, 0, len(data))
    except ValueError as error:
        assert str(error)
    else:
        assert 64 * (sum(sass.values()) + sum(ptx.values())) <= len(data)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 120), st.integers(0, 40)), max_size=6),
    st.data(),
)
def test_a_damaged_fat_binary_never_counts_more_than_fits(entries: list, data: st.DataObject):
    good = container(*(entry(kind, architecture, 8 * words) for kind, architecture, words in entries))
    expected = [Counter(a for k, a, _ in entries if k == kind) for kind in (2, 1)]
    assert list(map(Counter, fatbin.count(good, 0, len(good)))) == expected
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        found = fatbin.count(bytes(damaged), 0, len(damaged))
    except ValueError:
        return
    assert 64 * sum(sum(counts.values()) for counts in found) <= len(damaged)


@settings(max_examples=150, deadline=2000)
@given(data=st.data())
def test_a_damaged_library_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    library = data.draw(st.sampled_from([STUB, NO_DEVICE_CODE]))
    damaged = bytearray(library.read_bytes())
    (table,) = struct.unpack_from("<Q", damaged, 0x28)  # e_shoff: where the section headers lie
    headers = [*range(4, 64), *range(table, len(damaged))]
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.sampled_from(headers))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    path = tmp_path_factory.mktemp("damaged") / "library.so"
    path.write_bytes(damaged)
    try:
        assert isinstance(fatbin.read(path), fatbin.DeviceCode)
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("content", [b"", b"INPUT(-lcublas)", b"\x7fELF", b"\x7fELF\2\1\1" + b"\xff" * 300])
def test_what_is_no_library_is_refused_by_name(content: bytes, tmp_path: Path):
    path = tmp_path / "libstranger.so"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"libstranger\.so"):
        fatbin.read(path)


def test_a_truncated_library_is_refused(tmp_path: Path):
    path = tmp_path / "library.so"
    path.write_bytes(BITSANDBYTES.read_bytes()[:10_000_000])
    with pytest.raises(ValueError, match="cut off"):
        fatbin.read(path)


@pytest.mark.parametrize("header_size", [0, 64])
def test_a_damaged_count_of_sections_does_not_run_for_ever(header_size: int, tmp_path: Path):
    damaged = bytearray(NO_DEVICE_CODE.read_bytes())
    (table,) = struct.unpack_from("<Q", damaged, 0x28)
    struct.pack_into("<HH", damaged, 0x3A, header_size, 0)  # e_shnum 0: the count is the first section's size
    struct.pack_into("<Q", damaged, table + 0x20, 2**60)
    path = tmp_path / "library.so"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged or cut off"):
        fatbin.read(path)


def test_a_library_without_section_headers_is_not_taken_for_one_without_code(tmp_path: Path):
    stripped = bytearray(STUB.read_bytes())
    struct.pack_into("<Q", stripped, 0x28, 0)  # e_shoff
    struct.pack_into("<HHH", stripped, 0x3A, 64, 0, 0)
    path = tmp_path / "library.so"
    path.write_bytes(stripped)
    with pytest.raises(ValueError, match="no section headers"):
        fatbin.read(path)
