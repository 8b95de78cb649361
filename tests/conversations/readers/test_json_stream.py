"""Every whole record of a file is read, and what cannot be read is reported."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.readers import json_stream
from recipe.conversations.readers.json_stream import Record, Rejected, records
from recipe.core.errors import RecipeError

RECORDS = [{"a": "x" * 30}, {"b": ['"}],[', {"c": None}]}, {"d": "你好 \U0001f600 \\n"}, {}]


@pytest.fixture(autouse=True, params=[5, 64, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every border between two reads falls somewhere in a record."""
    monkeypatch.setattr(json_stream, "CHUNK", request.param)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw") / "raw.json"


def values(path: Path) -> list:
    return [item.value if isinstance(item, Record) else item for item in records(path)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, ensure_ascii=False),
        "\n".join(map(json.dumps, RECORDS)),
        "\r\n\r\n".join(map(json.dumps, RECORDS)) + "\r\n",
        "\ufeff" + json.dumps(RECORDS, ensure_ascii=False),
        "".join(json.dumps(record, indent=1) for record in RECORDS),
    ],
    ids=["array", "indented", "lines", "crlf", "bom", "objects"],
)
def test_arrays_and_lines_are_read_alike(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="")
    assert values(file) == RECORDS


@pytest.mark.parametrize("text", [json.dumps(RECORDS), "\n".join(map(json.dumps, RECORDS))], ids=["array", "lines"])
def test_a_packed_file_is_read_like_a_plain_one(file: Path, text: str) -> None:
    file.write_text(text)
    plain = list(records(file))
    file.write_bytes(gzip.compress(text[:60].encode()) + gzip.compress(text[60:].encode()))  # as two files joined
    assert list(records(file)) == plain


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, "checksum"])
def test_of_a_damaged_packed_file_what_comes_before_is_kept(file: Path, keep: float | str) -> None:
    text = "\n".join(json.dumps({"a": hashlib.sha256(str(number).encode()).hexdigest()}) for number in range(300))
    packed = bytearray(gzip.compress(text.encode()))
    if keep == "checksum":
        packed[-8] ^= 1
        cut, least = packed, 300
    else:
        cut, least = packed[: int(len(packed) * float(keep))], int(300 * float(keep)) - 10
    file.write_bytes(cut)
    *kept, last = records(file)
    whole = [item.value for item in kept if isinstance(item, Record)]
    assert whole == [json.loads(line) for line in text.splitlines()[: len(whole)]]
    assert len(whole) >= least
    assert isinstance(last, Rejected)
    assert last.reason is Drop.CUT_OFF
    assert "the compressed file is damaged" in last.detail


def test_a_number_cut_by_a_border_is_read_whole(file: Path) -> None:
    file.write_text("[1234567, 89012345, 6]")
    assert values(file) == [1234567, 89012345, 6]


def test_one_object_is_one_record(file: Path) -> None:
    file.write_text(json.dumps(RECORDS[0], indent=2))
    assert values(file) == RECORDS[:1]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_array_keeps_what_is_whole_and_counts_the_lost_bytes(file: Path, data: st.DataObject) -> None:
    whole = json.dumps(RECORDS, ensure_ascii=False, indent=1).encode()
    cut = data.draw(st.integers(2, len(whole) - 1))
    file.write_bytes(whole[:cut])
    *kept, last = records(file)
    assert [record.value for record in kept] == RECORDS[: len(kept)]
    assert isinstance(last, Rejected)
    assert last.reason is Drop.CUT_OFF
    if len(kept) < len(RECORDS):  # not one record fewer than could be had
        assert json.dumps(RECORDS[len(kept)], ensure_ascii=False) not in whole[:cut].decode(errors="ignore")
    lost = whole[last.offset : cut]
    assert f"{len(lost):,} bytes" in last.detail
    assert lost == b"" or lost.startswith(b"{")


def test_offsets_are_bytes(file: Path) -> None:
    data = json.dumps(RECORDS, ensure_ascii=False).encode()
    file.write_bytes(data)
    for record, expected in zip(records(file), RECORDS, strict=True):
        assert data[record.offset :].startswith(json.dumps(expected, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"a": oops}', Drop.NOT_JSON),
        (b'{"a": "no end}', Drop.NOT_JSON),
        (b'{"a": 1', Drop.NOT_JSON),
        (b"garbage without a brace", Drop.NOT_JSON),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", Drop.NOT_JSON),
        (b'{"a": "\xff\xfe"}', Drop.NOT_UTF8),
    ],
    ids=["value", "string", "brace", "garbage", "bomb", "bytes"],
)
def test_a_broken_line_costs_itself_only(file: Path, bad: bytes, reason: Drop) -> None:
    file.write_bytes(b'{"n": 1}\n' + bad + b'\n{"n": 2}\n{"n": 3}\n')
    first, rejected, *rest = values(file)
    assert [first, *rest] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert (rejected.reason, rejected.offset) == (reason, 9)


def test_a_byte_that_is_not_utf8_costs_its_record_only_in_an_array_too(file: Path) -> None:
    file.write_bytes('[{"n": "é"}, {"n": "'.encode() + b"\xe9" + b'"}, {"n": 3}]')
    first, rejected, third = values(file)
    assert (first, third) == ({"n": "é"}, {"n": 3})
    assert (rejected.reason, rejected.offset) == (Drop.NOT_UTF8, 14)


def test_an_escaped_half_of_a_pair_is_json(file: Path) -> None:
    file.write_text(r'[{"n": "\ud83d"}]')
    assert values(file) == [{"n": "\ud83d"}]


@pytest.mark.parametrize("bad", ['{"n": oops, "and": [{"m": 1}]}', '{"n": "x" "y"}', '{"n": "no end, ', '{"n": [1, }'])
def test_a_broken_record_in_an_array_costs_itself_only(file: Path, bad: str) -> None:
    """The next record is where its first key is, which the turns inside a record do not have."""
    good = '{"n": 3, "in": [{"m": 1}, {"m": 2}]}'
    file.write_text(f"[{good}, {bad}, {good},\n{good}]")
    first, rejected, *rest = values(file)
    assert [first, *rest] == [json.loads(good)] * 3
    assert (rejected.reason, rejected.offset) == (Drop.NOT_JSON, len(good) + 3)
    assert rejected.size == len(bad) + 2
    assert f"{len(bad) + 2} bytes were lost" in rejected.detail
    assert rejected.text.startswith(bad)


def test_a_broken_record_without_another_behind_it_ends_the_array(file: Path) -> None:
    data = b'[{"n": 1}, {"n": oops, "and": "so it goes on for a while"}, 3]'
    file.write_bytes(data)
    first, rejected = values(file)
    assert first == {"n": 1}
    assert (rejected.reason, rejected.offset) == (Drop.NOT_JSON, 11)
    assert f"{len(data) - 11} bytes" in rejected.detail


def test_what_follows_the_array_is_reported(file: Path) -> None:
    file.write_text('[{"n": 1}]  trailing')
    first, rejected = values(file)
    assert first == {"n": 1}
    assert rejected.detail.startswith("8 bytes after")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"PAR1\x00\x01", "starts with 'PAR1"),
        (b"hello", "starts with 'hello'"),
    ],
)
def test_a_file_that_is_no_json_is_refused(file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        list(records(file))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RecipeError, match="there is no file"):
            list(records(path))
