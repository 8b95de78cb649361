"""Every layout is told by its look and read as its publishers meant it: minimal samples, and real files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from recipe.conversations.formats import detect, export
from recipe.conversations.formats.detect import FORMATS, read
from recipe.conversations.messages import Conversation
from recipe.conversations.readers.json_stream import Record
from tests.conversations.published import BEST, SAMPLES, TREE, A, S, U


def turns(conversation: object) -> list[tuple[str, str]]:
    assert isinstance(conversation, Conversation)
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_record_as_published_is_told_by_its_look(tmp_path: Path, name: str) -> None:
    record, dialogues, over = SAMPLES[name]
    assert next(known for known, layout in FORMATS.items() if layout.matches(record)) == name
    (tmp_path / "a.json").write_text(json.dumps([record]))
    found = list(read(tmp_path / "a.json"))
    assert list(map(turns, found)) == dialogues
    assert [item.passed_over for item in found] == over
    assert len({item.id for item in found}) == len(found)


def test_every_layout_has_a_sample_and_matches_no_others() -> None:
    assert set(SAMPLES) == set(FORMATS) - {"oasst-all"}
    for name, (record, _, _) in SAMPLES.items():
        matching = {known for known, layout in FORMATS.items() if layout.matches(record)}
        # These look alike on purpose; the order of FORMATS says which is meant.
        alike = {"sharegpt-tools": {"sharegpt"}, "crosswoz": {"messages"}, "belle": {"alpaca"}, "oasst": {"oasst-all"}}
        assert matching == {name} | alike.get(name, set())


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "i", "chosen": "good", "rejected": "bad"}, [(U, "i"), (A, "good")]),
        ({"conversation_id": 1, "conversation": [{"human": "q", "assistant": "a"}]}, [(U, "q"), (A, "a")]),
        ({"plain_text": "[Human]: q<eoh>\n[MOSS]: a<eoa>\n", "num_turns": 1}, [(U, "q"), (A, "a")]),
        ({"prompt": "q", "completion": "a"}, [(U, "q"), (A, "a")]),
    ],
)
def test_the_other_shape_of_a_layout(tmp_path: Path, record: dict, expected: list) -> None:
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert list(map(turns, read(tmp_path / "a.json"))) == [expected]


def test_all_paths_of_a_tree_where_the_config_names_them(tmp_path: Path) -> None:
    found = list(detect.conversations(Record(0, TREE), 0, "a.json", detect.named("oasst-all")))
    assert list(map(turns, found)) == [BEST, [(U, "q"), (A, "worse")], [(U, "q"), (A, "unranked")]]
    assert [item.id for item in found] == ["t/0", "t/1", "t/2"]


def test_one_object_from_names_to_records_is_read_as_records(tmp_path: Path) -> None:
    record = SAMPLES["crosswoz"][0]
    (tmp_path / "a.json").write_text(json.dumps({"391": record, "7": record, "odd": 3}))
    *found, odd = read(tmp_path / "a.json")
    assert [item.id for item in found] == ["391", "7"]
    assert odd.detail == "a JSON int"


# file -> (layout that reads most of it, records, turns)
REAL = {
    "belle_eval_set.json": "belle-eval",
    "fastchat_dummy_conversation.json": "sharegpt",
    "firefly_dummy_data.jsonl": "firefly",
    "gitcloner_dummy_cn.json": "sharegpt",
    "gitcloner_dummy_en.json": "sharegpt",
    "gitcloner_test.json": "sharegpt",
    "lf_alpaca_en_demo.json": "alpaca",
    "lf_alpaca_zh_demo.json": "alpaca",
    "lf_glaive_toolcall_en_demo.json": "sharegpt-tools",
    "lf_identity.json": "alpaca",
    "lf_kto_en_demo.json": "messages",
    "lf_oaast_sft_zh.json": "alpaca",
    "oa_en_100_tree.jsonl": "oasst",
}


@pytest.mark.parametrize("name", REAL)
def test_every_record_of_every_real_file_is_read_by_its_layout(assets: Path, name: str) -> None:
    path = assets / "conversations" / name
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    told = Counter(next(known for known, layout in FORMATS.items() if layout.matches(record)) for record in raw)
    assert told.keys() <= {REAL[name], "belle"}
    assert told[REAL[name]] >= 0.99 * len(raw)
    found = list(read(path))
    assert len(found) == len(raw)
    assert all(isinstance(item, Conversation) for item in found)
    assert sum(len(item.messages) >= 2 for item in found) >= 0.98 * len(found)
    raw_text = json.dumps(raw, ensure_ascii=False)
    for item in found[:50]:
        for message in item.messages:
            if message.role == "system":  # may hold words of ours
                continue
            for line in message.content.splitlines():
                assert json.dumps(line.strip(), ensure_ascii=False)[1:-1] in raw_text or "\\" in json.dumps(line)


@pytest.mark.parametrize("layout", export.EXPORTS)
def test_what_is_exported_is_read_back_the_same(tmp_path: Path, layout: str) -> None:
    messages = [(S, "s"), (U, "q"), (A, "a\n你好"), (U, "r"), (A, "</script>")]
    samples = [
        {"id": "1", "source": "x", "messages": [{"role": role, "content": text} for role, text in messages]},
        {"id": "2", "source": "x", "messages": [{"role": role, "content": text} for role, text in messages[1:3]]},
    ]
    prepared = tmp_path / "train.jsonl"
    prepared.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    exported = tmp_path / "out.json"
    exported.write_text("".join(export.lines(prepared, layout)), encoding="utf-8")
    assert isinstance(json.loads(exported.read_text(encoding="utf-8")), list)
    assert [(item.id, turns(item)) for item in read(exported)] == [("1", messages), ("2", messages[1:3])]


def test_an_empty_part_is_exported_as_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("")
    assert json.loads("".join(export.lines(tmp_path / "val.jsonl", "sharegpt"))) == []
