"""Lists of turns with a role and a text: ShareGPT, OpenAI messages, and the variants that public sets use."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats import tools
from recipe.conversations.formats.base import Format, Record, RefusedError, is_list_of, keys, read_list
from recipe.conversations.formats.marks import check_parts, is_trained, refuse_media
from recipe.conversations.messages import ROLES, Dialogue, Message, join_texts, read_role, read_text

LIST_KEYS = (
    "messages", "conversations", "conversation", "items", "data", "dialogue", "turns", "dialog", "chat", "contents"
)  # fmt: skip
_LIST_KEYS = frozenset(LIST_KEYS)
TEXT_KEYS = ("value", "content", "text", "parts")
SYSTEM_KEYS = ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction")


def read_turns(turns: Iterable[Any], role_key: str = "role", roles: Mapping[str, str] = ROLES) -> list[Message]:
    """The turns as messages; one of the wrong shape becomes a blank one. Raises RefusedError where one is not text."""
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict):
            messages.append(Message("", ""))
            continue
        given = turn.get(role_key)
        name = (roles.get(given) if given.__class__ is str else "") or read_role(given, roles)
        if name == "tool" and "parameters" in turn:
            messages += tools.read_call_with_result(turn)
            continue
        content = turn.get("value") if role_key == "from" else turn.get("content")
        if content.__class__ is str and len(turn) == 2:  # nearly every turn there is
            messages.append(Message(name, content))
        else:
            messages.append(read_turn(turn, name, content))
    return messages


def read_turn(turn: Record, name: str, content: Any) -> Message:
    """The turn of a role with its tool calls and marks. Raises RefusedError where it is not text alone."""
    refuse_media(turn, "a turn")
    if content is None:
        content = next((turn[key] for key in TEXT_KEYS if turn.get(key) is not None), None)
    text = tools.read_result(content) if name in tools.RESULT_ROLES else read_parts(content)
    if turn.get("tool_calls") or turn.get("function_call"):
        text = join_texts(text, tools.read_calls(turn))
    if name == "system" and turn.get("tools"):  # ChatGLM4
        text = join_texts(text, tools.describe(turn["tools"]))
    return Message(name, text, name in ("user", "system") or is_trained(turn))


def read_parts(content: Any) -> str:
    """The text of a turn's content. Raises RefusedError where a part of it is not text."""
    if isinstance(content, dict) and "parts" in content:
        content = content["parts"]
    if isinstance(content, list):
        check_parts(content)
        return tools.read_blocks(content)
    return read_text(content)


def find_turns(record: Record) -> list[tuple[str, str]]:
    """(key, the key of a turn's role) for each field of the record that holds a list of turns."""
    found = []
    for key, value in record.items():
        if key in _LIST_KEYS:
            turns = value if value.__class__ is list else read_list(value)
            if role_key := _find_role_key(turns):
                found.append((key, role_key))
    return found


def _find_role_key(turns: Any) -> str:
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            if "from" in turn:
                return "from"
            if "role" in turn:
                return "role"
    return ""


def read_chat(record: Record) -> Iterator[Dialogue]:
    """The record's turns, with its system prompt and its tools."""
    yield Dialogue(read_context(record))


def read_context(record: Record, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """The messages of a record's list of turns. Raises RefusedError where it holds two lists that differ."""
    found = find_turns(record) or [(key, "role") for key in LIST_KEYS if record.get(key) == []]
    key, role_key = found[0]
    messages = read_turns(read_list(record[key]), role_key, roles)
    for other, other_role in found[1:]:
        if read_turns(read_list(record[other]), other_role, roles) != messages:
            raise RefusedError(Drop.AMBIGUOUS, f"{key!r} and {other!r} hold different turns")
    system = read_system(record)
    described = record.get("tools") or record.get("functions")
    has_tools = bool(described) or not tools.TOOL_ROLES.keys().isdisjoint([item.role for item in messages])
    if not (system or has_tools):
        return messages
    return tools.with_tools(messages, system, described)


def read_system(record: Record) -> str:
    """The system prompt beside a record's turns, or ""."""
    given = (record[key] for key in SYSTEM_KEYS if isinstance(record.get(key), (str, list, dict)))
    return join_texts(*dict.fromkeys(map(read_text, given)))


def is_sharegpt(record: Record) -> bool:
    return "from" in [role_key for _, role_key in find_turns(record)] or record.get("conversations") == []


def is_messages(record: Record) -> bool:
    return "role" in [role_key for _, role_key in find_turns(record)] or record.get("messages") == []


def read_crosswoz(record: Record) -> Iterator[Dialogue]:
    yield Dialogue(read_turns(record["messages"], roles={"usr": "user", "sys": "assistant"}))


def is_crosswoz(record: Record) -> bool:
    turns = record.get("messages")
    return is_list_of(turns, "role") and any(
        isinstance(turn, dict) and turn.get("role") == "usr" for turn in turns or ()
    )


_READS = frozenset({*SYSTEM_KEYS, "tools", "functions"})
CROSSWOZ = {
    "crosswoz": Format(
        '{"7": {"messages": [{"role": "usr", "content": "..."}, ...]}}',
        keys("messages"),
        is_crosswoz,
        read_crosswoz,
        specific=True,
    )
}
CHATS = {
    "sharegpt": Format(
        '{"conversations": [{"from": "human", "value": "..."}, ...]}', keys(*LIST_KEYS), is_sharegpt, read_chat, _READS
    ),
    "messages": Format(
        '{"messages": [{"role": "user", "content": "..."}, ...]}', keys(*LIST_KEYS), is_messages, read_chat, _READS
    ),
}
