"""The reader of .pth and .bin against torch.save itself, hostile pickles, and damaged files."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipe.checkpoints import pickled, pth, pth_out
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError


def save(path: Path, state: object, **options: object) -> Path:
    torch.save(state, path, **options)
    return path


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    return {
        "fp32": base,
        "fp16": base.half(),
        "bf16": base.bfloat16(),
        "int64": torch.arange(5),
        "bool": base > 0,
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "transposed": base.t(),
        "columns": base[1:5, 2:7:2],
        "shared": base[3],
        "broadcast": torch.tensor([1.0]).expand(4),
        "parameter": torch.nn.Parameter(base * 2),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_what_torch_save_wrote(tmp_path: Path, protocol: int) -> None:
    state = tensors()
    read = pth.read(save(tmp_path / "a.pth", state, pickle_protocol=protocol))
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert (read[name].shape, read[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(read[name].read(), tensor.detach()), name


def test_reads_a_modules_state_dict_and_its_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    read = pth.read(save(tmp_path / "a.bin", module.state_dict()))
    assert {name: lazy.read().tolist() for name, lazy in read.items()} == {
        name: tensor.tolist() for name, tensor in module.state_dict().items()
    }


def test_what_is_read_is_memory_of_its_own(tmp_path: Path) -> None:
    lazy = pth.read(save(tmp_path / "a.pth", {"a": torch.zeros(3)}))["a"]
    lazy.read().fill_(1)
    assert lazy.read().tolist() == [0, 0, 0]


def test_torch_reads_what_is_written_here(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in tensors().items() if name in ("fp32", "fp16", "bf16")}
    lazies = [LazyTensor(name, tuple(t.shape), t.dtype, lambda t=t: t) for name, t in state.items()]
    pth_out.write(tmp_path / "a.pth", lazies)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(loaded) == list(state)
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in state.items()
    )
    assert all(torch.equal(lazy.read(), state[name]) for name, lazy in pth.read(tmp_path / "a.pth").items())


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


HOSTILE = {
    "posix.system": Call(os.system, "touch /tmp/pwned"),
    "builtins.eval": Call(eval, "1 + 1"),
    "builtins.getattr": Call(getattr, Call(__import__, "torch.hub"), "load"),
    "torch.hub.load": Call(torch.hub.load, "a/b", "c"),
    "torch.serialization.load": Call(torch.load, "x"),
    "builtins.bytearray": bytearray(b"x"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_asks_for_more_is_refused_by_name(tmp_path: Path, name: str, protocol: int) -> None:
    path = save(tmp_path / "a.pth", {"a": torch.zeros(1), "b": HOSTILE[name]}, pickle_protocol=protocol)
    with pytest.raises(
        RecipeError, match=rf"asks for (__builtin__|{name.rpartition('.')[0]})\.{name.rpartition('.')[2]}"
    ):
        pth.read(path)


def test_opcodes_beyond_tensors_are_refused_by_name() -> None:
    for data, opcode in (
        (b"\x80\x02cos\nsystem\n(S'x'\no.", "os.system"),
        (b"\x80\x02(S'x'\nios\nsystem\n.", "STRING"),
        (b"\x80\x02}]\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04C\x01x.", "SHORT_BINBYTES"),
        (b"\x80\x02P1\n.", "PERSID"),
    ):
        with pytest.raises(RecipeError, match=opcode):
            pickled.read(data, "x.pth")


def test_control_characters_of_a_name_are_not_printed() -> None:
    with pytest.raises(RecipeError) as caught:
        pickled.read(b"\x80\x04\x8c\x05\x1b[31m\x8c\x01x\x93.", "x.pth")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [([1], "a list"), ({"a": 1}, "'a' is a int"), ({"a": {"b": torch.zeros(1)}}, "'a' is a dict"), ({1: 2}, "a int")],
)
def test_anything_but_a_dictionary_of_tensors_is_refused(tmp_path: Path, value: object, found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        pth.read(save(tmp_path / "a.pth", value))


class Forged(pickle.Pickler):
    """Writes a tensor of float32 over a storage with any numbers at all."""

    def persistent_id(self, obj: object) -> object:
        return obj[1:] if isinstance(obj, tuple) and obj[:1] == ("pid",) else None


def forged(path: Path, offset: object, shape: object, stride: object, numel: object = 4, key: str = "0") -> Path:
    call = (("pid", "storage", torch.FloatStorage, key, "cpu", numel), offset, shape, stride, False, OrderedDict())
    buffer = io.BytesIO()
    Forged(buffer, protocol=2).dump({"a": Call(torch._utils._rebuild_tensor_v2, *call)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", buffer.getvalue())
        archive.writestr("a/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


def test_a_well_forged_tensor_is_read(tmp_path: Path) -> None:
    assert pth.read(forged(tmp_path / "a.pth", 1, (2,), (2,)))["a"].read().tolist() == [2, 4]


@pytest.mark.parametrize(
    "place",
    [
        (4, (1,), (1,)),
        (0, (5,), (1,)),
        (0, (2,), (4,)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (3, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (1 << 40,), (0,)),
        (0, (0, 1 << 62), (1, 1)),
        (0, (1 << 31, 1 << 31, 1 << 31), (0, 0, 0)),
        (0, (1,) * 2000, (1,) * 2000),
        (0, (5,), (1,), 5),
        (0, (1,), (1,), -1),
        (0, (1,), (1,), 1 << 70),
        (0, ("1",), (1,)),
        (0, 1, 1),
        (0, (1,), (1,), 4, "../0"),
        (0, (1,), (1,), "4"),
    ],
)
def test_a_tensor_outside_its_bytes_or_beyond_its_file_is_refused(tmp_path: Path, place: tuple[object, ...]) -> None:
    with pytest.raises(RecipeError):
        pth.read(forged(tmp_path / "a.pth", *place))


def test_zips_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    good = forged(tmp_path / "good.pth", 0, (4,), (1,))
    members = {name: zipfile.ZipFile(good).read(name) for name in ("a/data.pkl", "a/data/0")}
    bad = tmp_path / "bad.pth"

    def written(reason: str, *extra: str, compression: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(bad, "w", compression) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            for name in extra:
                archive.writestr(name, b"")
        with pytest.raises(RecipeError, match=reason):
            pth.read(bad)

    written("compressed", compression=zipfile.ZIP_DEFLATED)
    written("2 data.pkl", "b/data.pkl")
    with pytest.warns(UserWarning, match="Duplicate"):
        written("two members of one name", "a/data/0")
    encrypted = bytearray(good.read_bytes())
    encrypted[encrypted.rindex(b"PK\x01\x02") + 8] |= 1
    bad.write_bytes(encrypted)
    with pytest.raises(RecipeError, match="encrypted"):
        pth.read(bad)
    overlapping = bytearray(good.read_bytes())
    at = overlapping.rindex(b"PK\x01\x02") + 42  # the local header's offset of the last member: now the first one's
    overlapping[at : at + 4] = bytes(4)
    bad.write_bytes(overlapping)
    with pytest.raises(RecipeError, match="overlap"):
        pth.read(bad)


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RecipeError, match=r"before 1\.6.*save it again"):
        pth.read(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(RecipeError, match="git lfs pull"):
        pth.read(path)
    path.write_bytes(b"<html>")
    with pytest.raises(RecipeError, match="not a torch checkpoint"):
        pth.read(path)
    with pytest.raises(RecipeError, match="missing"):
        pth.read(tmp_path / "none.pth")


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"a": torch.full((64,), 1.5)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<2f", 1.5, 1.5), struct.pack("<2f", 1.5, 1.25), 1))
    with pytest.raises(RecipeError, match="checksum"):
        pth.read(path)["a"].read()


STATE = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(6).half(), "c": torch.arange(12.0)[2:8:2]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, save(folder / "good.pth", STATE).read_bytes()


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_and_cut_files_give_an_error_or_the_right_tensors(
    small: tuple[Path, bytes], data: st.DataObject
) -> None:
    folder, good = small
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(bad)), st.integers(0, len(bad))))
    path = folder / "bad.pth"
    path.write_bytes(bad[:cut])
    try:
        read = {name: lazy.read() for name, lazy in pth.read(path).items()}
    except RecipeError:
        return
    # a view into a larger storage is the one thing that no checksum covers
    assert read["c"].shape == STATE["c"].shape
    assert all(torch.equal(read[name], STATE[name]) for name in ("a", "b"))


@settings(max_examples=300, deadline=2000)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4), cut=st.integers(0, 10_000))
def test_damaged_pickles_give_an_error_or_places(
    small: tuple[Path, bytes], flips: list[tuple[int, int]], cut: int
) -> None:
    with zipfile.ZipFile(io.BytesIO(small[1])) as archive:
        pickle_bytes = bytearray(archive.read("good/data.pkl"))
    for place, value in flips:
        pickle_bytes[place % len(pickle_bytes)] = value
    with contextlib.suppress(RecipeError):
        read = pickled.read(bytes(pickle_bytes[: cut or None]), "x.pth")
        assert all(isinstance(tensor, pickled.StoredTensor) for tensor in read.values())
