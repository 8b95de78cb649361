"""Checkpoints made to cost time or memory, or to end the process: refused in one sentence, quickly."""

import json
import os
import resource
import struct
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from recipe.checkpoints import gguf as gguf_reader
from recipe.checkpoints import hf, pth, tokenizer
from recipe.core.errors import RecipeError

SECONDS = 15


@pytest.fixture(autouse=True)
def bounded():
    """Every case ends soon and does not grow this process by a gigabyte."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


@pytest.fixture
def folder(hf_folder: Path) -> Path:
    """With a tokenizer.json, as most repositories have it."""
    tokenizer.from_folder(hf_folder, 384).save(hf_folder)
    (hf_folder / "tokenizer.model").unlink()
    return hf_folder


def damage(folder: Path, change) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_whole_tokenizer_json_gives_the_same_ids(folder: Path) -> None:
    expected = AutoTokenizer.from_pretrained(folder)
    made = tokenizer.from_folder(folder, 384)
    assert made.fast("the quick  fox </s> 1234").input_ids == expected("the quick  fox </s> 1234").input_ids
    damage(folder, lambda data: data["model"].update(dropout=0.9))
    made = tokenizer.from_folder(folder, 384)  # dropout would draw the tokens anew at every call
    assert {tuple(made.fast("the quick brown fox").input_ids) for _ in range(20)} == {
        tuple(expected("the quick brown fox").input_ids)
    }


CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data["model"].update(continuing_subword_prefix="##"), "marks parts of words"),
        (lambda data: data.update(normalizer={"type": "Sequence", "normalizers": [CHARSMAP]}), "rewrites characters"),
        (lambda data: data["model"].update(merges=[["", ""]]), "the merge"),
        (lambda data: data["model"].update(merges=[["the", "nowhere"]]), "the merge"),
        (lambda data: data["model"].update(vocab=dict.fromkeys(data["model"]["vocab"], 7)), "two tokens one id"),
        (lambda data: data["model"]["vocab"].update({"a" * 3_000_000: 384}), "3,000,000 characters"),
        (lambda data: data["added_tokens"][0].update(content="\ud800"), "not Unicode text"),
        (lambda data: data["added_tokens"][0].update(id=-1), "without an id"),
        (lambda data: data.update(decoder={"type": "NoSuchThing"}), "not a tokenizer.json"),
        (lambda data: data.update(model=[]), "not a tokenizer.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_tokenizer_json_is_refused(folder: Path, change, reason: str) -> None:
    damage(folder, change)
    with pytest.raises(RecipeError, match=reason):
        tokenizer.from_folder(folder, 384)


def test_a_tokenizer_that_ends_its_process_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipe.checkpoints.tokenizer_json.TRIAL", "import os; os.abort()")
    with pytest.raises(RecipeError, match=r"not a tokenizer\.json \(loading it ended with status -6\)"):
        tokenizer.from_folder(folder, 384)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000], ids=["lists", "objects"])
def test_deep_nesting_is_refused(folder: Path, text: str) -> None:
    for name in ("tokenizer.json", "config.json"):
        (folder / name).write_text(text)
    with pytest.raises(RecipeError, match=r"not a tokenizer\.json"):
        tokenizer.from_folder(folder, 384)
    with pytest.raises(RecipeError, match="not JSON"):
        hf.open_source(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_half_a_surrogate_pair_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text('{"eos_token": "\\ud800"}')
    with pytest.raises(RecipeError, match=rf"{name} is not JSON"):
        tokenizer.from_folder(folder, 384)


@pytest.mark.parametrize("index", ["²", "9" * 5000, "-1", "x"])
def test_an_added_token_without_a_number_is_refused(hf_folder: Path, index: str) -> None:
    settings = {"added_tokens_decoder": {index: {"content": "<x>"}}}
    (hf_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(RecipeError, match="its added tokens have no ids"):
        tokenizer.from_folder(hf_folder, 384)


def test_a_piece_of_megabytes_is_refused(sentencepiece_model: bytes) -> None:
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model)
    proto.pieces[300].piece = "a" * 3_000_000
    with pytest.raises(RecipeError, match="a token of 3,000,000 characters"):
        tokenizer.from_sentencepiece(proto.SerializeToString(), 384, Path("t.model"))


def test_a_gguf_token_of_megabytes_is_refused(tmp_path: Path) -> None:
    fields = {"tokenizer.ggml.tokens": ["a" * 3_000_000, "b"], "tokenizer.ggml.model": "llama"}
    with pytest.raises(RecipeError, match="a token of 3,000,000 characters"):
        gguf_reader.gguf_tokenizer.from_metadata(fields, 2, tmp_path)


def test_an_array_of_millions_of_numbers_is_read_as_one_block(tmp_path: Path) -> None:
    count = 10_000_000
    key = b"general.x"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    (tmp_path / "m.gguf").write_bytes(head + struct.pack("<IIQ", 9, 0, count) + bytes(count))
    start = time.monotonic()
    fields, _ = gguf_reader.read_file(tmp_path / "m.gguf")
    assert time.monotonic() - start < 2
    assert isinstance(fields["general.x"], np.ndarray) and len(fields["general.x"]) == count


def test_gguf_arrays_are_those_of_the_library(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("numbers", [3, 1, 2])
    writer.add_array("texts", ["a", "é"])
    writer.add_float32("one", 1.5)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        write()
    writer.close()
    fields, _ = gguf_reader.read_file(tmp_path / "m.gguf")
    assert list(fields["numbers"]) == [3, 1, 2] and fields["texts"] == ["a", "é"] and fields["one"] == 1.5


@pytest.mark.parametrize("name", ["a/data.pkl", "a/byteorder"])
def test_a_hole_of_gigabytes_is_not_read(tmp_path: Path, name: str) -> None:
    """A sparse file of 30 GB that takes a few kB of disk, with the zip's directory behind the hole."""
    size, path = 30 << 30, tmp_path / "a.pth"
    info = zipfile.ZipInfo("a/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        if name != info.filename:
            archive.writestr(info, b"\x80\x02}.")
        start = archive.fp.tell()
        entry = zipfile.ZipInfo(name)
        entry.file_size = entry.compress_size = size
        entry.header_offset, entry.CRC = start, 0
        archive.fp.write(entry.FileHeader(zip64=True))
        archive.fp.seek(size, os.SEEK_CUR)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(entry)
        archive.NameToInfo[name] = entry
        archive._didModify = True
    assert path.stat().st_size > size
    with pytest.raises(RecipeError, match=r"a list of tensors needs at most|big-endian machine, or is damaged"):
        pth.read(path)


def test_a_gguf_tensor_without_values_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("output.weight", np.zeros((0, 32), dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(RecipeError, match=r"output\.weight is empty"):
        gguf_reader.read_file(tmp_path / "x.gguf")
