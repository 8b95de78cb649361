"""The look at an unknown file: what it shows, and that its TOML reads the file."""

import json
import tomllib
from pathlib import Path

import pytest

from recipe.conversations.formats import detect
from recipe.conversations.formats.fields import build_format
from recipe.conversations.formats.inspect import describe_file, text
from recipe.conversations.messages import Conversation
from recipe.core.errors import RecipeError

ODD = [
    {"customer_query": "q", "agent_reply": "a"},
    {"prompt_text": "q", "model_response": "a"},
    {"log": [{"speaker": "user", "utterance": "q is a text"}, {"speaker": "bot", "utterance": "a is one too"}]},
    {"stage": {"x": 1}, 'sätze "neu"': [{"who": "user", "text": "q"}, {"who": "bot", "text": "a"}]},
]


@pytest.mark.parametrize("record", ODD)
def test_the_suggested_toml_reads_the_file(tmp_path: Path, record: dict) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps([record] * 5))
    found = describe_file(path)
    assert (found.records, found.conversations, len(found.nearest)) == (5, 0, 3)
    (source,) = tomllib.loads("\n".join(found.toml))["corpus"]["source"]
    assert source["path"] == str(path)
    format = build_format(source["fields"], {})
    for number, raw in enumerate(detect.raw_records(path, path.name)):
        (item,) = detect.conversations(raw, number, path.name, format)
        assert isinstance(item, Conversation)
        assert [message.role for message in item.messages] == ["user", "assistant"]
        assert [message.content[0] for message in item.messages] == ["q", "a"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"question": "q", "context": "c", "answer": "a"},
            {"question": "question", "context": "context", "answer": "answer"},
        ),
        ({"lang": "py", "problem": "q", "solution": "a"}, {"question": "problem", "answer": "solution"}),
        (
            {"id": "a very long id", "role_1": "r", "message_1": "a long text", "message_2": "another one"},
            {"question": "message_1", "answer": "message_2"},
        ),
        ({"id": "x1", "query_text": "q", "what": "a long text"}, {"question": "query_text", "answer": "what"}),
        ({"text": "t"}, {"question": "text", "answer": "..."}),
    ],
)
def test_the_guess_takes_names_then_the_longest_texts(tmp_path: Path, record: dict, expected: dict) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps([record]))
    (source,) = tomllib.loads("\n".join(describe_file(path).toml))["corpus"]["source"]
    assert source["fields"] == expected


def test_of_two_readings_the_toml_names_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "q", "query": "r", "response": "a"}]))
    found = describe_file(tmp_path / "a.json")
    assert found.choices == ("prompt-response", "query-response")
    (source,) = tomllib.loads("\n".join(found.toml))["corpus"]["source"]
    assert source["format"] == "prompt-response"
    assert found.toml[-1].endswith("# as is meant, or query-response")


def test_a_known_file_names_its_format_keys_and_samples(assets: Path) -> None:
    found = describe_file(assets / "conversations" / "lf_kto_en_demo.json")
    assert found.formats == {"messages": 200}
    assert found.keys["label", "true or false"] == 200
    assert found.keys["messages[].role", "text"] == 200
    assert sum(found.rejected.values()) + found.conversations == 200
    shown = text(found)
    assert "format: messages (200 records)" in shown
    assert "marked in the source as not for training" in shown
    assert len(shown) < 4000


def test_what_is_shown_is_printable(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"\x1b[31mkey": "\x1b]0;title\x07" + "x" * 10_000}))
    shown = text(describe_file(path))
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert len(shown) < 3000


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no file"):
        describe_file(tmp_path / "none.json")
