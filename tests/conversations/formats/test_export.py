"""An exported corpus is read back the same."""

import json
from pathlib import Path

import pytest

from recipe.conversations.formats import export
from recipe.conversations.formats.detect import read
from tests.conversations.formats.test_formats import turns
from tests.conversations.published import A, S, U


@pytest.mark.parametrize("format", export.EXPORTS)
def test_what_is_exported_is_read_back_the_same(tmp_path: Path, format: str) -> None:
    messages = [(S, "s"), (U, "q"), (A, "a\n你好"), (U, "r"), (A, "</script>")]
    samples = [
        {"id": "1", "source": "x", "messages": [{"role": role, "content": text} for role, text in messages]},
        {"id": "2", "source": "x", "messages": [{"role": role, "content": text} for role, text in messages[1:3]]},
    ]
    prepared = tmp_path / "train.jsonl"
    prepared.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    exported = tmp_path / "out.json"
    exported.write_text("".join(export.lines(prepared, format)), encoding="utf-8")
    assert isinstance(json.loads(exported.read_text(encoding="utf-8")), list)
    assert [(item.id, turns(item)) for item in read(exported)] == [("1", messages), ("2", messages[1:3])]


def test_an_empty_part_is_exported_as_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("")
    assert json.loads("".join(export.lines(tmp_path / "val.jsonl", "sharegpt"))) == []
