"""An exported corpus is read back the same."""

import json
from pathlib import Path

import pytest

from recipe.conversations.formats import export
from recipe.conversations.formats.detect import read
from recipe.core.errors import RecipeError
from tests.conversations.formats.test_formats import turns
from tests.conversations.published import A, S, U

MESSAGES = [(S, "s"), (U, "q"), (A, "a\n你好"), (U, "r"), (A, "</script>")]


def write_corpus(folder: Path, *conversations: list[dict]) -> Path:
    folder.mkdir()
    samples = [{"id": str(n + 1), "source": "x", "messages": item} for n, item in enumerate(conversations)]
    (folder / "train.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (folder / "val.jsonl").write_text("")
    return folder


def as_turns(messages: list[tuple[str, str]]) -> list[dict]:
    return [{"role": role, "content": text} for role, text in messages]


@pytest.mark.parametrize("format", export.EXPORTS)
def test_an_export_is_read_back_the_same(tmp_path: Path, format: str) -> None:
    corpus = write_corpus(tmp_path / "mine", as_turns(MESSAGES), as_turns(MESSAGES[1:3]))
    export.write(corpus, tmp_path, format)
    suffix = export.EXPORTS[format].suffix
    exported = tmp_path / f"train{suffix}"
    assert [(item.id, turns(item)) for item in read(exported)] == [("1", MESSAGES), ("2", MESSAGES[1:3])]
    empty = (tmp_path / f"val{suffix}").read_text(encoding="utf-8")
    assert empty == "" if suffix == ".jsonl" else json.loads(empty) == []


@pytest.mark.parametrize("format", ["sharegpt", "messages", "axolotl"])
def test_an_untrained_answer_is_marked_in_the_export(tmp_path: Path, format: str) -> None:
    marked = as_turns(MESSAGES)
    marked[2]["trained"] = False
    export.write(write_corpus(tmp_path / "mine", marked), tmp_path, format)
    (found,) = read(tmp_path / f"train{export.EXPORTS[format].suffix}")
    assert [message.trained for message in found.messages] == [True, True, False, True, True]


def test_a_program_that_would_train_every_answer_is_not_told_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = as_turns(MESSAGES)
    marked[2]["trained"] = False
    export.write(write_corpus(tmp_path / "mine", marked), tmp_path, "sharegpt")
    assert not (tmp_path / "dataset_info.json").exists()
    assert "LLaMA-Factory cannot leave out" in capsys.readouterr().err


def test_alpaca_cannot_mark_an_untrained_answer(tmp_path: Path) -> None:
    marked = as_turns(MESSAGES)
    marked[2]["trained"] = False
    with pytest.raises(RecipeError, match="cannot mark: export as messages"):
        export.write(write_corpus(tmp_path / "mine", marked), tmp_path, "alpaca")


@pytest.mark.parametrize("format", ["alpaca", "sharegpt", "messages"])
def test_dataset_info_names_the_columns_of_the_files(tmp_path: Path, format: str) -> None:
    export.write(write_corpus(tmp_path / "mine", as_turns(MESSAGES)), tmp_path, format)
    entry = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))["mine-train"]
    (record,) = json.loads((tmp_path / entry["file_name"]).read_text(encoding="utf-8"))
    assert set(entry["columns"].values()) <= set(record)
    if tags := entry.get("tags"):
        turns = record[entry["columns"]["messages"]]
        assert [turn[tags["role_tag"]] for turn in turns[:3]] == [
            tags["system_tag"], tags["user_tag"], tags["assistant_tag"]
        ]  # fmt: skip
        assert all(tags["content_tag"] in turn for turn in turns)
