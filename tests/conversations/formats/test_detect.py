"""Which layouts are read, and how."""

import json
from pathlib import Path

import pytest

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.detect import read
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.readers.json_stream import Rejected
from recipe.core.errors import RecipeError

GOOD = {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


def read_json(path: Path, value: object) -> list[Conversation | Rejected]:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return list(read(path))


def test_sharegpt_with_every_name_of_a_role(tmp_path: Path) -> None:
    names = ["system", "human", "gpt", "user", "chatgpt", "Human", "bing", "user", "bard", "user", "assistant", "tool"]
    turns = [{"from": name, "value": str(index)} for index, name in enumerate(names)]
    (found,) = read_json(tmp_path / "a.json", [{"id": "x", "conversations": turns}])
    roles = ["system", *["user", "assistant"] * 5, "tool"]
    assert found == Conversation("x", tuple(Message(role, str(i)) for i, role in enumerate(roles)), "a.json")


def test_openai_messages_with_typed_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "this"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    (found,) = read_json(tmp_path / "a.json", {"messages": messages})
    assert found == Conversation("a-0", (Message("user", "see\nthis"), Message("assistant", "")), "a.json")


def test_turns_of_the_wrong_shape_are_left_for_cleaning_to_count(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": 3}, "text", {"value": "x"}, {"from": None, "value": "y"}, None]
    (found,) = read_json(tmp_path / "a.json", [{"conversations": turns}])
    assert [message.role for message in found.messages] == ["user", "", "", "", ""]


def test_a_strange_record_among_good_ones_is_rejected_with_its_offset(tmp_path: Path) -> None:
    good, strange, again, word = read_json(tmp_path / "a.json", [GOOD, {"prompt": "x", "reply": "y"}, GOOD, "w"])
    assert isinstance(good, Conversation)
    assert isinstance(again, Conversation)
    start = (tmp_path / "a.json").read_text().index('{"prompt')
    detail = "an object with the keys 'prompt', 'reply'"
    text = '{"prompt": "x", "reply": "y"}'
    assert strange == Rejected("a.json", start, Drop.UNKNOWN_FORMAT, detail, text, len(text))
    assert word.detail == "a JSON str"


@pytest.mark.parametrize("count", [1, 500])
def test_an_unknown_format_says_what_was_seen_and_what_is_known(tmp_path: Path, count: int) -> None:
    with pytest.raises(RecipeError, match=r"keys 'prompt', 'reply'; known are .*sharegpt .*alpaca"):
        read_json(tmp_path / "a.json", [{"prompt": "x", "reply": "y"}] * count)


def test_a_file_cut_in_its_first_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"conversations": [{"from": "hum')
    with pytest.raises(RecipeError, match="found the file ends inside the record at byte 1"):
        list(read(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gitcloner_dummy_en.json", 910),
        ("fastchat_dummy_conversation.json", 500),
        ("lf_kto_en_demo.json", 300),
    ],
)
def test_real_files_are_read_whole(assets: Path, name: str, count: int) -> None:
    path = assets / "conversations" / name
    raw = json.loads(path.read_text(encoding="utf-8"))
    found = list(read(path))
    assert len(found) == len(raw) == count
    for conversation, record in zip(found, raw, strict=True):
        turns = record.get("conversations") or record["messages"]
        assert [message.content for message in conversation.messages] == [
            turn.get("value", turn.get("content")) for turn in turns
        ]
