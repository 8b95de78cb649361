"""Field and role names of one's own."""

import pytest

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats import detect
from recipe.conversations.formats.fields import build_format, check_roles, get_path
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.core.errors import UsageError


def read(record: dict, fields: dict, roles: dict | None = None, answers: str = "first") -> list[list[tuple[str, str]]]:
    format = build_format(fields, roles or {})
    found = list(detect.conversations(Record(0, record), 0, "a", format, answers, roles))
    return [[(message.role, message.content) for message in item.messages] for item in found]


QA = [("user", "q"), ("assistant", "a")]
TURNS = {"chat": {"turns": [{"who": {"name": "Client"}, "says": "q"}, {"who": {"name": "agent"}, "says": "a"}]}}
PATHS = {"messages": "chat.turns", "role": "who.name", "content": "says"}
ROLES = {"client": "user", "agent": "assistant"}


@pytest.mark.parametrize(
    ("record", "fields", "expected"),
    [
        ({"ask": "q", "reply": "a"}, {"question": "ask", "answer": "reply"}, QA),
        ({"in": {"ask": "q"}, "out": [{"reply": "a"}]}, {"question": "in.ask", "answer": "out.0.reply"}, QA),
        ({"a.b": "q", "c": "a"}, {"question": "a.b", "answer": "c"}, QA),
        (
            {"ask": "q", "about": "x", "reply": "a", "sys": "s", "before": [["p", "o"]]},
            {"question": "ask", "context": "about", "answer": "reply", "system": "sys", "history": "before"},
            [("system", "s"), ("user", "p"), ("assistant", "o"), ("user", "q\n\nx"), ("assistant", "a")],
        ),
        (
            {"log": [{"q": "q", "a": "a"}, {"q": "r", "a": "b"}]},
            {"messages": "log", "question": "q", "answer": "a"},
            [*QA, ("user", "r"), ("assistant", "b")],
        ),
        ({"log": '[{"role": "user", "text": "q"}, {"role": "bot", "text": "a"}]'}, {"messages": "log"}, QA),
        (
            {"messages": [{"role": "user", "body": "q"}, {"role": "assistant", "body": "a"}]},
            {"content": "body"},
            QA,
        ),
    ],
)
def test_fields_name_the_parts_of_a_record(record: dict, fields: dict, expected: list) -> None:
    assert read(record, fields) == [expected]


def test_roles_name_the_sides() -> None:
    assert read(TURNS, PATHS, ROLES) == [QA]
    assert read(TURNS, PATHS) == [[("client", "q"), ("agent", "a")]]


def test_roles_apply_to_a_known_format_too() -> None:
    record = {"messages": [{"role": "client", "content": "q"}, {"role": "agent", "content": "a", "train": False}]}
    (found,) = detect.conversations(Record(0, record), 0, "a", roles=ROLES)
    assert [(message.role, message.trained) for message in found.messages] == [("user", True), ("assistant", False)]


def test_a_list_of_answers_gives_the_first_or_all() -> None:
    record = {"ask": "q", "replies": ["a", "b"]}
    fields = {"question": "ask", "answer": "replies"}
    assert read(record, fields) == [QA]
    assert read(record, fields, answers="all") == [QA, [("user", "q"), ("assistant", "b")]]


def test_a_record_without_the_fields_is_rejected() -> None:
    format = build_format({"question": "ask", "answer": "reply"}, {})
    (found,) = detect.conversations(Record(0, {"ask": "q"}), 0, "a", format)
    assert isinstance(found, Rejected)
    assert found.reason is Drop.UNKNOWN_FORMAT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qestion": "a"}, "names 'qestion': expected question"),
        ({"question": "a"}, "neither messages nor both"),
        ({"question": "", "answer": "b"}, "question is empty"),
        ({"messages": "m", "question": "q"}, "one of question and answer"),
        ({"messages": "m", "question": "q", "answer": "a", "role": "r"}, "also role or content"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_format(fields, {})


def test_a_role_must_be_one_of_three() -> None:
    with pytest.raises(UsageError, match="maps client to nurse"):
        check_roles({"client": "nurse"}, has_fields=True)


def test_a_known_role_gets_another_meaning_only_with_fields() -> None:
    with pytest.raises(UsageError, match="maps Human, which is known as user"):
        check_roles({"Human": "assistant"}, has_fields=False)
    turns = {"log": [{"from": "gpt", "value": "q"}, {"from": "human", "value": "a"}]}
    assert read(turns, {"messages": "log"}, {"Human": "assistant", "gpt": "user"}) == [QA]


def test_tool_calls_and_media_are_those_of_a_known_format() -> None:
    call = {"who": "assistant", "says": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    turns = [{"who": "user", "says": "q"}, call, {"who": "tool", "says": "7"}, {"who": "assistant", "says": "a"}]
    fields = {"messages": "log", "role": "who", "content": "says"}
    expected = [("user", "q"), ("assistant", '{"name": "f", "arguments": {}}'), ("user", "7"), ("assistant", "a")]
    assert read({"log": turns}, fields) == [expected]
    seen = {"log": [{"who": "user", "says": "q", "image": "a.png"}, {"who": "assistant", "says": "a"}]}
    (found,) = detect.conversations(Record(0, seen), 0, "a", build_format(fields, {}))
    assert isinstance(found, Rejected)
    assert found.reason is Drop.MEDIA


@pytest.mark.parametrize("path", ["a.9", "a.x", "b.c", "a.0.b.c", "a.-1", ""])
def test_a_path_that_leads_nowhere_is_nothing(path: str) -> None:
    assert get_path({"a": [{"b": 1}]}, path) is None
