"""Any file gives conversations, rejected records or one error sentence; never another error, and nothing is lost."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recipe.conversations.cleaning.filters import Filters
from recipe.conversations.formats import detect
from recipe.conversations.formats.detect import FORMATS
from recipe.conversations.messages import Conversation
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.prepare import Preparation
from recipe.conversations.readers.json_stream import Record, Rejected, records
from recipe.conversations.tokens import encoders
from recipe.core.config import Corpus
from recipe.core.errors import RecipeError
from tests.conversations.published import SAMPLES
from tests.conversations.variants import VARIANTS

RECORDS = {**{name: sample[0] for name, sample in SAMPLES.items()}, **{name: row[1] for name, row in VARIANTS.items()}}

KEYS = [
    "id",
    "conversations",
    "messages",
    "from",
    "value",
    "role",
    "content",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "data",
    "log",
    "chosen",
    "rejected",
    "prompt",
    "replies",
    "rank",
    "text",
    "completion",
    "instances",
    "context",
    "response",
    "question",
    "chat",
    "plain_text",
    "conversation",
    "human",
    "assistant",
    "target",
    "kind",
    "chatgpt_answers",
    "human_answers",
    "std_answer",
    "turn_1",
    "Human",
    "MOSS",
    "meta_instruction",
    "conversation_id",
    "user utterance",
    "system response",
    "label",
    "weight",
    "images",
    "tool_calls",
    "function",
    "arguments",
    "name",
    "type",
    "mapping",
    "message",
    "parent",
    "current_node",
    "author",
    "parts",
    "query",
    "answer",
    "scores",
    "train",
    "user_input",
    "responses_and_scores",
    "completions",
    "overall_score",
    "preferred_output",
    "inputs",
    "targets",
    "user",
    "row",
    "image_path",
    "loss_mask",
    "train_detail",
    "tool_result",
    "score",
]
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
leaves |= st.sampled_from(
    [
        "human",
        "gpt",
        "function_call",
        "usr",
        "tool",
        "text",
        "image_url",
        "tool_use",
        "tool_result",
        "User: a\nAssistant: b",
        "### Human: a### Assistant: b",
        "[1]",
        "[|AI|] x",
        "\n\nHuman: q\n\nAssistant: a",
        "\ud83d",
    ]
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)
ANSWERS: st.SearchStrategy = st.sampled_from(["first", "all"])
objects = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)
ALL = Filters(
    Corpus(
        max_length=200,
        duplicates="near",
        over_long="truncate",
        script="t2s",
        repeated_digits=3,
        blocked_words=("x",),
    ),
    ("a b",),
)


@pytest.fixture(scope="module")
def counter(byte_level_tokenizer) -> TokenCounter:
    return TokenCounter(encoders(byte_level_tokenizer))


def prepare(counter: TokenCounter, items: list) -> None:
    """Everything is taken, accounted for, and can be written."""
    preparation = Preparation(counter, ALL)
    for item in items:
        if prepared := preparation.take(item):
            for sample in prepared.samples:
                json.dumps([message.content for message in sample.messages], ensure_ascii=False).encode()
    assert all(account.balanced() for account in preparation.accounts.values())


@given(value=objects)
@settings(max_examples=400, deadline=None)
def test_any_object_is_read_or_rejected(counter: TokenCounter, value: dict) -> None:
    items = list(detect.conversations(Record(0, value), 0, "a.json"))
    assert items
    prepare(counter, items)


@pytest.mark.parametrize("name", RECORDS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_a_published_record_with_any_part_replaced(counter: TokenCounter, name: str, data: st.DataObject) -> None:
    record = json.loads(json.dumps(RECORDS[name]))
    places: list[tuple] = []

    def walk(node: object) -> None:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            places.append((node, key))
            walk(child)

    walk(record)
    node, key = data.draw(st.sampled_from(range(len(places))).map(places.__getitem__))
    node[key] = data.draw(values)
    for format in (None, *(item for item in FORMATS.values() if item.matches(record))):
        items = list(detect.conversations(Record(0, record), 0, "a.json", format, data.draw(ANSWERS)))
        assert all(isinstance(item, (Conversation, Rejected)) for item in items)
        prepare(counter, items)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), lines=st.booleans())
@example(seed=8592, count=3, lines=False)
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_never_end_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, lines: bool
) -> None:
    rng = random.Random(seed)
    good = [{"id": str(n), "conversations": [{"from": "human", "value": "q\u00e9你\n"}]} for n in range(8)]
    text = (
        "\n".join(map(json.dumps, good))
        if lines
        else json.dumps(good, ensure_ascii=False, indent=rng.choice([None, 1]))
    )
    data = bytearray(text.encode())
    edits = []
    for _ in range(count):
        at = rng.randrange(len(data))
        length = rng.choice([0, 1, 3, 40])
        new = rng.choice([b"", b'"', b"{", b"}", b"]", b"\\", b"\xff", b"\n", b"[" * 9])
        edits.append((at, len(data[at : at + length]), len(new)))
        data[at : at + length] = new
    path: Path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(data)
    try:
        found = list(records(path))
    except RecipeError:
        return
    ends = 0
    for item in found:  # in order, apart, and inside the file
        assert ends <= item.offset <= len(data)
        ends = item.offset + item.size
    assert ends <= len(data)
    for number, span in enumerate(spans(text)):
        for edit in edits:
            span = span and after_edit(span, *edit)
        if span:  # not damaged itself: it is read, or set aside with its damaged neighbours
            whole = [item.value for item in found if isinstance(item, Record) and item.offset == span[0]]
            assert whole in ([], [good[number]])
            left = bytearray(data)
            for item in found:
                left[item.offset : item.offset + item.size] = b" " * item.size
            assert len(left[span[0] : span[1]].replace(b" ", b"").replace(b"\n", b"")) <= len("}]}")


def spans(text: str) -> list[tuple[int, int]]:
    """Where each of the records lies, in bytes."""
    starts = [found.start() for found in re.finditer(r'\{\s*"id"', text)]
    ends = [text.rindex("}", 0, end) + 1 for end in [*starts[1:], len(text)]]
    return [(len(text[:start].encode()), len(text[:end].encode())) for start, end in zip(starts, ends, strict=True)]


def after_edit(span: tuple[int, int], at: int, removed: int, added: int) -> tuple[int, int] | None:
    """Where an undamaged record lies after an edit; None where the edit damaged it."""
    start, end = span
    if end <= at:
        return span
    return (start + added - removed, end + added - removed) if start >= at + removed else None
