"""What becomes of a record: a conversation, or a rejection with its reason."""

import json
import time
from pathlib import Path

import pytest

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats import detect
from recipe.conversations.formats.detect import find_nearest, read
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.core.errors import RecipeError
from tests.conversations.published import SAMPLES

GOOD = {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


def read_json(path: Path, value: object) -> list[Conversation | Rejected]:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return list(read(path))


def test_sharegpt_with_every_name_of_a_role(tmp_path: Path) -> None:
    names = ["system", "human", "gpt", "user", "chatgpt", "Human", "bing", "user", "bard", "user", "assistant", "nurse"]
    turns = [{"from": name, "value": str(index)} for index, name in enumerate(names)]
    (found,) = read_json(tmp_path / "a.json", [{"id": "x", "conversations": turns}])
    roles = ["system", *["user", "assistant"] * 5, "nurse"]
    assert found == Conversation("x", tuple(Message(role, str(i)) for i, role in enumerate(roles)), "a.json")


def test_typed_text_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "text", "text": "this"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    (found,) = read_json(tmp_path / "a.json", {"messages": messages})
    assert found == Conversation("a-0", (Message("user", "see\nthis"), Message("assistant", "")), "a.json")


CHAT = {"messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]}
ALPACA = {"instruction": "q", "output": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**CHAT, "label": False}, Drop.MARKED_BAD),  # KTO in LLaMA-Factory's set
        ({**ALPACA, "kto_tag": False}, Drop.MARKED_BAD),
        ({"prompt": "q", "completion": "a", "label": False}, Drop.MARKED_BAD),  # KTO in TRL
        ({"prompt": "q", "completion": "a", "label": "False"}, Drop.MARKED_BAD),  # and as CSV
        ({**ALPACA, "train": False}, Drop.MARKED_BAD),
        ({**ALPACA, "loss_weight": 0.0}, Drop.MARKED_BAD),
        ({**CHAT, "images": ["a.png"]}, Drop.MEDIA),
        ({**CHAT, "image": "a.png"}, Drop.MEDIA),
        ({**ALPACA, "videos": ["a.mp4"]}, Drop.MEDIA),
        ({**ALPACA, "audios": ["a.wav"]}, Drop.MEDIA),
        ({"messages": [{"role": "user", "content": "<image>q", "images": ["a.png"]}, CHAT["messages"][1]]}, Drop.MEDIA),
        ({**CHAT, "image_path": "a.png"}, Drop.MEDIA),
        ({"messages": [{"role": "user", "content": [{"image": "a.png"}, {"text": "q"}]}]}, Drop.MEDIA),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [IMAGE]}]}]}, Drop.MEDIA),
        ({"messages": [{"role": "user", "content": [{"type": "hologram", "text": "q"}]}]}, Drop.UNKNOWN_FORMAT),
        ({"messages": [{"role": "assistant", "content": ""}, {"role": "tool", "content": "7"}]}, Drop.UNKNOWN_FORMAT),
        ({"messages": [{"role": "tool_call", "content": " "}, {"role": "tool", "content": "7"}]}, Drop.UNKNOWN_FORMAT),
        ({**ALPACA, "history": "q: a"}, Drop.UNKNOWN_FORMAT),
        ({**ALPACA, "history": ["q"]}, Drop.UNKNOWN_FORMAT),
        ({**ALPACA, "input": {"x": 1}}, Drop.UNKNOWN_FORMAT),
        ({"prompt": "Shorten:", "input": "x y", "response": "x"}, Drop.UNKNOWN_FORMAT),
        ({"instruction": "As a nurse:", "question": "q", "answer": "a"}, Drop.UNKNOWN_FORMAT),
        ({"question": "q", "A": "x", "B": "y", "answer": "B"}, Drop.UNKNOWN_FORMAT),  # MMLU as CSV
        ({"conversations": [{"question": "q", "answer": "a"}] * 2}, Drop.AMBIGUOUS),  # of one conversation, or of two
        ({"request": CHAT, "response": {"choices": []}}, Drop.UNKNOWN_FORMAT),
        ({"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "q"}]}]}, Drop.MEDIA),
        ({"prompt": "q", "response": "a", "query": "r"}, Drop.AMBIGUOUS),
        ({"instruction": "q", "output": "a", "response": "b"}, Drop.AMBIGUOUS),
        ({**CHAT, "conversations": [{"from": "human", "value": "other"}]}, Drop.AMBIGUOUS),
        ({"question": "q", "answer": "a", "context": "long text"}, Drop.UNKNOWN_FORMAT),
    ],
)
def test_a_record_that_must_not_be_read_has_a_reason(tmp_path: Path, record: dict, reason: Drop) -> None:
    good, rejected = read_json(tmp_path / "a.json", [GOOD, record])
    assert isinstance(good, Conversation)
    assert isinstance(rejected, Rejected), rejected
    assert rejected.reason is reason
    assert rejected.detail


@pytest.mark.parametrize(
    "mark",
    [
        {"image_url": "a.png"},
        {"label": True},
        {"kto_tag": True},
        {"label": 0},
        {"images": []},
        {"image": None},
        {"weight": 1},
        {"train": True},
    ],
)
def test_other_marks_keep_the_record(tmp_path: Path, mark: dict) -> None:
    (found,) = read_json(tmp_path / "a.json", [{**ALPACA, **mark}])
    assert isinstance(found, Conversation)


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"loss_weight": 0.0},
        {"loss": False},
        {"train": False},
        {"training": False},
        {"train_on_turn": False},
        {"masked": True},
        {"loss_mask": 0},
        {"train": "false"},
        {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
    ],
)
@pytest.mark.parametrize(("key", "role", "text"), [("messages", "role", "content"), ("conversations", "from", "value")])
def test_an_answer_marked_as_untrained_is_context(tmp_path: Path, mark: dict, key: str, role: str, text: str) -> None:
    turns = [("user", "q"), ("assistant", "bad"), ("user", "r"), ("assistant", "good")]
    turns = [{role: name, text: content} for name, content in turns]
    marked = [turns[0] | mark, turns[1] | mark, *turns[2:]]
    (found,) = read_json(tmp_path / "a.json", [{key: marked}])
    assert [message.trained for message in found.messages] == [True, False, True, True]


def test_xtuner_marks_an_answer_as_context(tmp_path: Path) -> None:
    pairs = [{"input": "q", "output": "a", "output_with_loss": False}, {"input": "r", "output": "b"}]
    (found,) = read_json(tmp_path / "a.json", [{"conversation": pairs}])
    assert [message.trained for message in found.messages] == [True, False, True, True]


def test_a_chosen_answer_that_contradicts_the_turns_is_ambiguous(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    same, other = read_json(
        tmp_path / "a.json", [{"messages": turns, "chosen": "a", "rejected": "x"}, {"messages": turns, "chosen": "b"}]
    )
    assert [message.content for message in same.messages] == ["q", "a"]
    assert other.reason is Drop.AMBIGUOUS


def test_a_list_of_pairs_alone_is_read_as_its_format_says() -> None:
    record = Record(0, {"conversations": [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]})
    for name, expected in (("xtuner", [["q", "a", "r", "b"]]), ("question-answer", [["q", "a"], ["r", "b"]])):
        found = list(detect.conversations(record, 0, "a", detect.named(name)))
        assert [[message.content for message in item.messages] for item in found] == expected


def test_what_would_be_left_out_of_the_question_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'context' would be left out of the question"):
        read_json(tmp_path / "a.json", [{"question": "q", "answer": "a", "context": "c"}])


def test_two_readings_ask_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"can be read as prompt-response or query-response; set the source's format"):
        read_json(tmp_path / "a.json", [{"prompt": "q", "query": "r", "response": "a"}])


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
def test_an_unknown_format_names_the_nearest_ones(tmp_path: Path, count: int) -> None:
    with pytest.raises(RecipeError, match=r"keys 'prompt', 'reply'; the nearest formats are .*--inspect") as error:
        read_json(tmp_path / "a.json", [{"prompt": "x", "reply": "y"}] * count)
    assert "prompt-response" in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"customer_query": "q", "agent_response": "a"}, "query-response"),
        ({"instruction": "q", "result": "a"}, "alpaca"),
        ({"x": 1}, "messages"),
        ({}, "sharegpt"),
    ],
)
def test_the_nearest_formats_share_keys_or_words_of_them(record: dict, expected: str) -> None:
    assert expected in find_nearest(record)


def test_one_object_from_names_to_records_is_read_as_records(tmp_path: Path) -> None:
    record = SAMPLES["crosswoz"][0]
    *found, odd = read_json(tmp_path / "a.json", {"391": record, "7": record, "odd": 3})
    assert [item.id for item in found] == ["391", "7"]
    assert odd.detail == "a JSON int"


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
EXPECTED = (Message("user", "q"), Message("assistant", "a"))


@pytest.mark.parametrize(
    "text",
    [
        "\n".join([json.dumps(MESSAGES)] * 3),  # a list of messages on each line
        json.dumps([MESSAGES] * 3),
        json.dumps({"data": [GOOD_PAIR := {"question": "q", "answer": "a"}] * 3}),
        json.dumps({"version": "1.0", "data": [GOOD_PAIR] * 3}),
        json.dumps({"train": [GOOD_PAIR] * 2, "info": {"n": [1]}, "test": [GOOD_PAIR]}, indent=1),
        json.dumps({"items": [{"messages": MESSAGES}] * 3, "total": 3}),
        json.dumps({"features": [], "rows": [{"row_idx": 0, "row": GOOD_PAIR}] * 3}),  # Hugging Face's viewer
        "\n".join([json.dumps({"row_idx": 0, "row": GOOD_PAIR})] * 3),
        json.dumps([GOOD_PAIR]) + "\n" + json.dumps([GOOD_PAIR] * 2) + "\n",  # two files joined
    ],
)
def test_records_inside_lists_and_objects(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    found = list(read(tmp_path / "a.json"))
    assert [item.messages for item in found] == [EXPECTED] * 3


def test_flat_open_assistant_messages_become_trees(tmp_path: Path) -> None:
    def message(tree: str, name: str, parent: str | None, role: str, text: str, **more: object) -> dict:
        return {"message_id": name, "parent_id": parent, "message_tree_id": tree, "role": role, "text": text, **more}

    records = [
        message("1", "1", None, "prompter", "q"),
        message("1", "2", "1", "assistant", "worse", rank=1),
        message("1", "3", "1", "assistant", "best", rank=0),
        message("2", "4", None, "prompter", "r"),
        message("2", "5", "9", "assistant", "its parent is not here"),
        message("2", "6", "4", "assistant", "b"),
    ]
    first, lost, second = read_json(tmp_path / "a.json", records)
    assert (first.id, [m.content for m in first.messages], first.passed_over) == ("1", ["q", "best"], 1)
    assert (second.id, [m.content for m in second.messages]) == ("2", ["r", "b"])
    assert lost.reason is Drop.UNKNOWN_FORMAT


def test_what_reviewers_took_out_of_a_tree_is_passed_over(tmp_path: Path) -> None:
    def reply(text: str, **marks: object) -> dict:
        return {"text": text, "role": "assistant", "replies": [], **marks}

    replies = [reply("deleted", rank=0, deleted=True), reply("spam", review_result=False), reply("good", rank=1)]
    tree = {"text": "q", "role": "prompter", "review_result": True, "replies": replies}
    found, rejected = read_json(tmp_path / "a.json", [{"prompt": tree}, {"prompt": {**tree, "deleted": True}}])
    assert ([message.content for message in found.messages], found.passed_over) == (["q", "good"], 2)
    assert rejected.reason is Drop.MARKED_BAD
    (only,) = detect.conversations(Record(0, {"prompt": tree}), 0, "a", detect.named("oasst-all"))
    assert ([message.content for message in only.messages], only.passed_over) == (["q", "good"], 2)


def test_a_chain_of_flat_messages_is_not_nested_without_bound(tmp_path: Path) -> None:
    chain = [
        {"message_id": str(n), "parent_id": str(n - 1) if n else None, "message_tree_id": "1", "role": "x", "text": "y"}
        for n in range(600)
    ]
    other = {"message_id": "o", "parent_id": None, "message_tree_id": "0", "text": "q", "role": "prompter"}
    _, rejected = read_json(tmp_path / "a.json", [other, *chain])
    assert rejected.reason is Drop.TOO_DEEP


@pytest.mark.parametrize("depth", [300, 900, 3000])
def test_json_text_nested_deeply_stays_text(tmp_path: Path, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    call = {"type": "function", "function": {"name": "f", "arguments": nested}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    found, *_ = read_json(tmp_path / "a.json", [{"messages": turns}, {"messages": nested}])
    assert json.loads(found.messages[1].content) == {"name": "f", "arguments": nested}


@pytest.mark.parametrize("text", [" " * 10**6, "<eoh" * 10**5, "[Human]: " * 10**4, "### Human:" * 10**4, "\n" * 10**6])
def test_a_hostile_transcript_is_read_in_linear_time(tmp_path: Path, text: str) -> None:
    records = [
        {"plain_text": f"[Human]: q{text}x[MOSS]: a{text}"},
        {"text": f"### Human: q{text}### Assistant: a{text}"},
        {"text": f"<s>[INST] <<SYS>>\n{text} [/INST] a{text}" + "[INST]" * 10_000},
        {"instruction": f"Human:q{text}\nAssistant:", "output": text},
        {"instruction": f"User: q{text}\nAssistant: a", "input": f"User: {text}", "output": text},
        {"chosen": f"\n\nHuman: q{text}\n\nAssistant: a{text}", "rejected": ""},
    ]
    started = time.process_time()
    assert len(read_json(tmp_path / "a.json", records)) == 6
    assert time.process_time() - started < 10


def test_a_chatgpt_export_with_tools_and_images(tmp_path: Path) -> None:
    def node(name: str, parent: str | None, role: str, content: dict) -> dict:
        return {"id": name, "parent": parent, "message": {"author": {"role": role}, "content": content}}

    call = {"content_type": "code", "text": "1+1"}
    nodes = [
        node("a", None, "user", {"content_type": "text", "parts": ["q"]}),
        node("b", "a", "assistant", {"content_type": "thoughts", "text": "hidden"}),
        node("c", "b", "assistant", call),
        node("d", "c", "tool", {"content_type": "execution_output", "text": "2"}),
        node("e", "d", "assistant", {"content_type": "text", "parts": ["two"]}),
    ]
    image = node("f", "e", "user", {"content_type": "multimodal_text", "parts": [{"asset_pointer": "x"}, "see"]})
    plain = {"mapping": {item["id"]: item for item in nodes}, "current_node": "e"}
    shown = {"mapping": {item["id"]: item for item in [*nodes, image]}, "current_node": "f"}
    found, rejected = read_json(tmp_path / "conversations.json", [plain, shown])
    roles = ["user", "assistant", "user", "assistant"]
    assert [(m.role, m.content) for m in found.messages] == list(zip(roles, ["q", "1+1", "2", "two"], strict=True))
    assert rejected.reason is Drop.MEDIA


def test_a_chatgpt_export_shows_what_the_page_showed(tmp_path: Path) -> None:
    def node(parent: str | None, role: str, text: str, **more: object) -> dict:
        content = {"content_type": "text", "parts": [text]}
        return {"parent": parent, "message": {"author": {"role": role}, "content": content, **more}}

    mapping = {
        "a": node(None, "system", "hidden", metadata={"is_visually_hidden_from_conversation": True}),
        "b": node("a", "user", "q"),
        "c": node("b", "assistant", "hidden too", weight=0.0),
        "d": node("c", "assistant", "search(x)", recipient="browser"),
        "e": node("d", "tool", ""),
        "f": node("e", "assistant", "a", weight=1.0),
    }
    mapping["e"]["message"]["content"] = {"content_type": "tether_browsing_display", "result": "found"}
    shown, blank = read_json(
        tmp_path / "a.json",
        [{"mapping": mapping}, {"mapping": mapping | {"e": node("d", "tool", "")}}],
    )
    assert [message.content for message in shown.messages] == ["q", "search(x)", "found", "a"]
    assert [message.content for message in blank.messages] == ["q", "search(x)", "", "a"]


def test_a_file_cut_in_its_first_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"conversations": [{"from": "hum')
    with pytest.raises(RecipeError, match="found the file ends inside the record at byte 1"):
        list(read(tmp_path / "a.json"))
