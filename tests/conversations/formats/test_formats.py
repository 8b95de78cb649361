"""Every format is recognized and read as its publishers meant it: minimal samples, and real files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from recipe.conversations.formats import detect
from recipe.conversations.formats.detect import FORMATS, NAMED_ONLY, read, recognize
from recipe.conversations.messages import Conversation
from recipe.conversations.readers.json_stream import Record
from tests.conversations.published import BEST, RANKED, SAMPLES, TREE, A, U
from tests.conversations.variants import VARIANTS

NAMES = {id(item): name for name, item in FORMATS.items()}


def turns(conversation: object) -> list[tuple[str, str]]:
    assert isinstance(conversation, Conversation), conversation
    return [(message.role, message.content) for message in conversation.messages]


def get_name(record: dict) -> str:
    return NAMES.get(id(recognize(record)), "")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_published_record_is_recognized_and_read(tmp_path: Path, name: str) -> None:
    record, dialogues, over = SAMPLES[name]
    assert get_name(record) == name
    (tmp_path / "a.json").write_text(json.dumps([record]))
    found = list(read(tmp_path / "a.json"))
    assert list(map(turns, found)) == dialogues
    assert [item.passed_over for item in found] == over
    assert len({item.id for item in found}) == len(found)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_published_variant_is_recognized_and_read(tmp_path: Path, name: str) -> None:
    format, record, dialogues, over = VARIANTS[name]
    assert get_name(record) == format
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    found = list(read(tmp_path / "a.jsonl"))
    assert list(map(turns, found)) == dialogues
    assert [item.passed_over for item in found] == over


def test_every_format_has_a_sample() -> None:
    assert set(SAMPLES) == set(FORMATS) - set(NAMED_ONLY)


def test_a_named_ranking_takes_the_first_answer() -> None:
    record, dialogues, over = RANKED
    for answers in ("first", "all"):
        found = list(detect.conversations(Record(0, record), 0, "a", FORMATS["ranked-alpaca"], answers))
        assert list(map(turns, found)) == dialogues
        assert [item.passed_over for item in found] == over


def test_answers_all_gives_a_conversation_for_each_unranked_answer() -> None:
    record = {"system": "s", "instruction": "q", "output": ["a", "b", "c"]}
    found = list(detect.conversations(Record(0, record), 0, "a.json", answers="all"))
    assert [(item.id, turns(item)[1:], item.passed_over) for item in found] == [
        (f"a-0/{index}", [(U, "q"), (A, answer)], 0) for index, answer in enumerate("abc")
    ]


def test_answers_all_keeps_a_ranking_by_scores() -> None:
    record = {"instruction": "q", "output": ["a", "b"], "scores": [0, 1]}
    (found,) = detect.conversations(Record(0, record), 0, "a.json", answers="all")
    assert (turns(found), found.passed_over) == ([(U, "q"), (A, "b")], 1)


def test_all_paths_of_a_tree_where_the_config_names_them() -> None:
    found = list(detect.conversations(Record(0, TREE), 0, "a.json", detect.named("oasst-all")))
    assert list(map(turns, found)) == [BEST, [(U, "q"), (A, "worse")], [(U, "q"), (A, "unranked")]]
    assert [item.id for item in found] == ["t/0", "t/1", "t/2"]


# file -> the format that reads most of it
REAL = {
    "belle_eval_set.json": "belle-eval",
    "fastchat_dummy_conversation.json": "sharegpt",
    "firefly_dummy_data.jsonl": "firefly",
    "gitcloner_dummy_cn.json": "sharegpt",
    "gitcloner_dummy_en.json": "sharegpt",
    "gitcloner_test.json": "sharegpt",
    "lf_alpaca_en_demo.json": "alpaca",
    "lf_alpaca_zh_demo.json": "alpaca",
    "lf_glaive_toolcall_en_demo.json": "sharegpt",
    "lf_identity.json": "alpaca",
    "lf_kto_en_demo.json": "messages",
    "lf_oaast_sft_zh.json": "alpaca",
    "oa_en_100_tree.jsonl": "oasst",
}


def load(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", REAL)
def test_every_record_of_every_real_file_is_read(assets: Path, name: str) -> None:
    path = assets / "conversations" / name
    raw = load(path)
    recognized = Counter(map(get_name, raw))
    assert recognized.keys() <= {REAL[name], "belle"}
    assert recognized[REAL[name]] >= 0.99 * len(raw)
    found = list(read(path))
    assert len(found) == len(raw)
    kept = [item for item in found if isinstance(item, Conversation)]
    assert len(kept) == len(raw) - sum(record.get("label") is False for record in raw)
    assert sum(len(item.messages) >= 2 for item in kept) >= 0.98 * len(kept)
    raw_text = json.dumps(raw, ensure_ascii=False)
    for item in kept[:50]:
        for message in item.messages:
            if message.role == "system":  # may hold words of this project
                continue
            for line in message.content.splitlines():
                assert json.dumps(line.strip(), ensure_ascii=False)[1:-1] in raw_text or "\\" in json.dumps(line)


@pytest.mark.parametrize("name", ["gitcloner_dummy_en.json", "fastchat_dummy_conversation.json"])
def test_real_turns_are_unchanged(assets: Path, name: str) -> None:
    path = assets / "conversations" / name
    for conversation, record in zip(read(path), load(path), strict=True):
        assert [text for _, text in turns(conversation)] == [turn["value"] for turn in record["conversations"]]


def test_calls_of_tools_in_real_data_become_answers(assets: Path) -> None:
    path = assets / "conversations" / "lf_glaive_toolcall_en_demo.json"
    sides = {"human": U, "gpt": A, "function_call": A, "observation": U}
    for conversation, record in zip(read(path), load(path), strict=True):
        expected = [(sides[turn["from"]], turn["value"]) for turn in record["conversations"]]
        assert [turn for turn in turns(conversation) if turn[0] != "system"] == expected


def test_real_tool_calls_read_the_same_from_openai_messages(assets: Path) -> None:
    """The same conversations, rewritten as OpenAI has them, give the same turns."""
    records = load(assets / "conversations" / "lf_glaive_toolcall_en_demo.json")
    compared = 0
    for record in records:
        messages = []
        for turn in record["conversations"]:
            if turn["from"] == "function_call":
                call = json.loads(turn["value"])
                if json.dumps(call, ensure_ascii=False) != turn["value"]:
                    break
                function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
                calls = [{"id": "1", "type": "function", "function": function}]
                messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            else:
                role = {"human": "user", "gpt": "assistant", "observation": "tool"}[turn["from"]]
                messages.append({"role": role, "content": turn["value"]})
        else:
            tools = [{"type": "function", "function": tool} for tool in json.loads(record["tools"])]
            openai = {"messages": messages, "tools": tools}
            (expected,) = detect.conversations(Record(0, record), 0, "a")
            (found,) = detect.conversations(Record(0, openai), 0, "a")
            assert turns(found)[-len(messages) :] == turns(expected)[-len(messages) :]
            compared += 1
    assert compared > 200
