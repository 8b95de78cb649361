"""Hostile and damaged files: one record lost with its reason, or one sentence; memory stays bounded."""

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.detect import read
from recipe.conversations.messages import Conversation
from recipe.conversations.readers import delimited, json_stream, tables
from recipe.conversations.readers.files import records
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.core.errors import RecipeError

GOOD = {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a record as 1,000 characters, in reads of 64."""
    for module in (json_stream, delimited, tables):
        monkeypatch.setattr(module, "MAX_RECORD", 1000)
    monkeypatch.setattr(json_stream, "CHUNK", 64)
    monkeypatch.setattr(tables, "_SMALL", 1000)


LARGE = [
    "x" * 3000,
    'quoted " and \\\\ ' * 300,
    "\\" * 3001,
    [{"id": "inside", "b": "}]{["}] * 300,
    {"id": {"id": ["[" * 2000]}},
]


@pytest.mark.parametrize("large", LARGE, ids=range(len(LARGE)))
@pytest.mark.parametrize("lines", [True, False])
def test_a_record_over_the_limit_costs_itself_only(
    small_limit: None, tmp_path: Path, large: object, lines: bool
) -> None:
    values = [GOOD, {"id": "b", "large": large}, GOOD, GOOD]
    texts = [json.dumps(value) for value in values]
    data = "\n".join(texts) if lines else f"[{', '.join(texts)}]"
    (tmp_path / "a.json").write_text(data)
    first, rejected, *rest = records(tmp_path / "a.json", "a.json")
    assert [item.value for item in (first, *rest)] == [GOOD] * 3
    assert (rejected.reason, rejected.offset) == (Drop.TOO_LARGE, data.index(texts[1]))
    assert len(texts[1]) <= rejected.size <= len(texts[1]) + 1


@pytest.mark.parametrize("depth", [150, 300, 900, 5000, 100_000])
@pytest.mark.parametrize("bracket", ["[]", ['{"a":', "}"]], ids=["list", "object"])
def test_a_deeply_nested_record_costs_itself_only(tmp_path: Path, depth: int, bracket: list[str]) -> None:
    nested = bracket[0] * depth + "1" * (len(bracket[0]) > 1) + bracket[1] * depth
    line = json.dumps(GOOD)
    (tmp_path / "a.jsonl").write_text(f'{line}\n{{"deep": {nested}, "messages": []}}\n{line}\n')
    found = list(read(tmp_path / "a.jsonl"))
    assert pickle.loads(pickle.dumps(list(records(tmp_path / "a.jsonl", "a"))))  # as they travel to a worker
    first, deep, last = found
    assert isinstance(first, Conversation)
    assert isinstance(last, Conversation)
    if depth > json_stream.MAX_DEPTH:
        assert isinstance(deep, Rejected)
        assert deep.reason in (Drop.TOO_DEEP, Drop.NOT_JSON)


BOMB = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1200 << 20,) * 2)
from pathlib import Path
from recipe.conversations.readers.files import records
print([item.reason.name if hasattr(item, "reason") else item.value for item in records(Path(sys.argv[1]), "a")])
"""


def test_a_gzip_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.json.gz", "wb", compresslevel=1) as file:
        file.write(b'[{"n": 1}, {"n": "')
        for _ in range(400):
            file.write(b"x" * (1 << 20))
        file.write(b'"}, {"n": 3}]')
    assert (tmp_path / "a.json.gz").stat().st_size < 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(tmp_path / "a.json.gz")], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "[{'n': 1}, 'TOO_LARGE', {'n': 3}]", done.stderr


def test_a_repeated_dictionary_value_of_parquet_counts_at_its_size(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    sizes = [item.size for item in records(tmp_path / "a.parquet", "a")]
    assert sizes == [1 << 20] * 100  # so that a shard of 2 MiB takes few of them


def test_a_large_value_of_parquet_costs_its_row_only(small_limit: None, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "x" * 2000, *"bcdefghijk"]}), tmp_path / "a.parquet")
    first, large, *rest = records(tmp_path / "a.parquet", "a")
    assert [item.value["text"] for item in (first, *rest)] == list("abcdefghijk")
    assert large.reason is Drop.TOO_LARGE
    pq.write_table(pa.table({"text": [os.urandom(3000).hex()]}), tmp_path / "b.parquet")
    with pytest.raises(RecipeError, match="rows of more than 64 MB"):
        list(records(tmp_path / "b.parquet", "b"))


@pytest.mark.parametrize("data", ["{}", "[1]", "{", '{"_data_files": [{"filename": 3}]}', "[" * 100_000])
def test_a_broken_state_of_a_saved_set_is_one_sentence(tmp_path: Path, data: str) -> None:
    (tmp_path / "state.json").write_text(data)
    with pytest.raises(RecipeError, match=r"state\.json (is not what|names)"):
        list(read(tmp_path))


def test_a_pipe_or_a_device_is_refused_without_opening(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    for path in (tmp_path / "a.json", Path("/dev/null"), Path("/dev/tty")):
        if path.exists():
            with pytest.raises(RecipeError, match="is a pipe or a device"):
                list(read(path))


def test_a_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m.json"))
    with pytest.raises(RecipeError) as error:
        list(read(path))
    assert str(error.value).encode().isascii()
    path.write_text(json.dumps([GOOD, {"x": 1}]))
    found = list(read(path))
    assert [type(item) for item in found] == [Conversation, Rejected]
    with pytest.raises(RecipeError, match=r"cannot be opened|there is no file"):
        list(read(Path("x" * 5000)))


ROWS = [{"instruction": f'say "{n}",\nplease', "output": "a;\tb"} for n in range(300)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "b.csv", "a.csv.gz"])
def test_named_columns_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    delimiter = {"a.tsv": "\t", "b.csv": ";"}.get(name, ",")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["instruction", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = list(read(path))
    assert [[message.content for message in item.messages] for item in found] == [list(row.values()) for row in ROWS]


def test_a_row_with_other_cells_or_bytes_costs_itself_only(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfprompt,response\nq,a\nq\nq,a,b\n\nq,\xff\nq,a\n")
    first, short, long, bad, last = read(tmp_path / "a.csv")
    assert [type(item) for item in (first, last)] == [Conversation] * 2
    assert [item.reason for item in (short, long, bad)] == [Drop.WRONG_CELLS, Drop.WRONG_CELLS, Drop.NOT_UTF8]


def test_an_index_of_pandas_and_spaces_in_a_header_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",instruction, output\n0,q,a\n")
    (found,) = read(tmp_path / "a.csv")
    assert [message.content for message in found.messages] == ["q", "a"]


def test_a_broken_quote_costs_its_row_and_an_open_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,response\nq,a\nq,"b"c\nq,d\nq,"open\nr,e\n')
    first, broken, last, cut = records(tmp_path / "a.csv", "a")
    assert [item.value["response"] for item in (first, last)] == ["a", "d"]
    assert (broken.reason, cut.reason) == (Drop.WRONG_CELLS, Drop.CUT_OFF)
    assert "in 12 characters" in cut.detail


def test_a_table_in_utf16_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response\nq,a\n", encoding="utf-16")
    with pytest.raises(RecipeError, match="is not in UTF-8"):
        list(read(tmp_path / "a.csv"))


@pytest.mark.parametrize("cell", ["x" * 3000, '"' + "x\n" * 2000])
def test_a_large_cell_ends_the_table_in_bounded_memory(small_limit: None, tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,response\nq,a\nq,{cell}\nq,a\n")
    first, rejected = records(tmp_path / "a.csv", "a")
    assert isinstance(first, Record)
    assert rejected.reason is Drop.TOO_LARGE


@pytest.mark.parametrize("header", ["", "\n", "a,a\n", "a,\n", ",,a\n"])
def test_a_table_without_named_columns_is_one_sentence(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.csv").write_text(header + "q,a\n" * bool(header))
    with pytest.raises(RecipeError, match=r"has no header|a different name for every column"):
        list(read(tmp_path / "a.csv"))


def test_a_zstandard_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    import pyarrow as pa

    lines = [{**GOOD, "id": str(number), "hash": hashlib.sha256(b"%d" % number).hexdigest()} for number in range(500)]
    text = "\n".join(map(json.dumps, lines)).encode()
    half = len(text) // 2
    packed = b"".join(pa.Codec("zstd").compress(part, asbytes=True) for part in (text[:half], text[half:]))
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert [item.id for item in read(tmp_path / "a.jsonl.zst")] == [str(number) for number in range(500)]
    (tmp_path / "b.jsonl.zst").write_bytes(packed[:-200])
    *kept, last = records(tmp_path / "b.jsonl.zst", "b")
    assert len(kept) >= 200
    assert isinstance(last, Rejected)
    assert last.reason is Drop.CUT_OFF


def test_text_of_a_table_that_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([b"\xff\xfe", b"x"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"instruction": column, "output": column}), tmp_path / "x.parquet")
    with pytest.raises(RecipeError, match="cannot be read"):
        list(records(tmp_path / "x.parquet", "x"))


def test_damaged_statistics_of_parquet_do_not_end_the_process(tmp_path: Path) -> None:
    """pyarrow aborts when it is asked about such a column. Found by atheris."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"instruction": ["a", "b"], "output": ["c", "d"]}), path)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    code = "import sys; from pathlib import Path; from recipe.conversations.readers.tables import records\n"
    code += "from recipe.core.errors import RecipeError\n"
    code += "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
    code += "    try:\n        list(records(path, 'a'))\n    except RecipeError:\n        pass\n"
    (tmp_path / "damaged").mkdir()
    for position in range(footer, len(data) - 8):
        changed = bytearray(data)
        changed[position] ^= 0x10
        (tmp_path / "damaged" / f"{position}.parquet").write_bytes(changed)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "damaged")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
