"""Rows that pyarrow and `datasets` wrote are read like the records they came from."""

import json
from pathlib import Path

import pytest

from recipe.conversations.formats.detect import read
from recipe.conversations.messages import Conversation
from recipe.core.errors import RecipeError

ROWS = [
    {"id": f"r{number}", "messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]}
    for number in range(700)
]


@pytest.fixture(scope="module")
def dataset():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


def ids(path: Path) -> list[str]:
    found = list(read(path))
    assert all(isinstance(item, Conversation) and len(item.messages) == 2 for item in found)
    return [item.id for item in found]


def test_a_parquet_file(dataset, tmp_path: Path) -> None:
    dataset.to_parquet(tmp_path / "a.parquet")
    assert ids(tmp_path / "a.parquet") == [row["id"] for row in ROWS]


def test_a_folder_that_datasets_saved_in_several_files(dataset, tmp_path: Path) -> None:
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    assert len(list((tmp_path / "saved").glob("*.arrow"))) == 3
    assert ids(tmp_path / "saved") == [row["id"] for row in ROWS]


def test_a_saved_dictionary_of_sets_gives_all_of_them(dataset, tmp_path: Path) -> None:
    from datasets import DatasetDict

    DatasetDict(train=dataset.select(range(5)), test=dataset.select(range(5, 9))).save_to_disk(tmp_path / "saved")
    assert sorted(ids(tmp_path / "saved")) == sorted(f"r{number}" for number in range(9))


def test_a_folder_of_parquet_files_as_the_hub_keeps_them(dataset, tmp_path: Path) -> None:
    for number in range(2):
        dataset.select([number]).to_parquet(tmp_path / "data" / f"train-{number}.parquet")
    assert ids(tmp_path) == ["r0", "r1"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.parquet", b"PAR1 not really", "cannot be read .*expected Parquet or Arrow"),
        ("a.arrow", b"nothing", "cannot be read .*expected Parquet or Arrow"),
        ("readme.txt", b"x", "holds no Parquet file"),
        ("state.json", b"{}", "is not what `datasets` writes"),
        (
            "state.json",
            json.dumps({"_data_files": [{"filename": "../../secret"}]}).encode(),
            "expected a file beside it",
        ),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        list(read(tmp_path if name in ("readme.txt", "state.json") else tmp_path / name))
