"""Records with field names of their own: a format from the `fields` and `roles` of a source in the config."""

from collections.abc import Iterator, Mapping
from typing import Any

from recipe.conversations.formats.base import Format, Record, are_texts, read_list
from recipe.conversations.formats.pair_lists import read_history
from recipe.conversations.formats.pairs import read_pair
from recipe.conversations.formats.tools import TOOL_ROLES, with_tools
from recipe.conversations.formats.turns import LIST_KEYS, TEXT_KEYS, read_turn
from recipe.conversations.messages import ROLES, Dialogue, Message, alternate, join_texts, read_role, read_text
from recipe.core.errors import UsageError
from recipe.core.text import snippet

PAIR_FIELDS = ("question", "context", "answer", "history")
TURN_FIELDS = ("role", "content")
FIELDS = (*PAIR_FIELDS, "messages", *TURN_FIELDS, "system")
_ROLE_KEYS = ("role", "from")


def build_format(fields: Mapping[str, str], roles: Mapping[str, str]) -> Format:
    """The format of records with these fields.

    `fields` maps names of `FIELDS` to paths, "data.turns" being the field `turns` of the field `data`. Either
    `question` and `answer` (with `context`, `history`), or `messages`, a list of turns; `role` and `content`, or
    `question` and `answer`, are then paths in a turn. `roles` maps further role names to user, assistant or system.
    Raises UsageError for names and combinations that mean nothing.
    """
    _check(fields)
    names = {**ROLES, **{name.strip().lower(): role for name, role in roles.items()}}
    shape = "{" + ", ".join(f'"{path}": ...' for path in fields.values()) + "}"
    if not any(name in fields for name in ("messages", *TURN_FIELDS)):
        required = (frozenset({_first(fields["question"]), _first(fields["answer"])}),)
        return Format(shape, required, lambda record: _is_pair(record, fields), lambda record: _pairs(record, fields))
    lists = [_first(fields["messages"])] if "messages" in fields else LIST_KEYS
    return Format(
        shape,
        tuple(frozenset({name}) for name in lists),
        lambda record: isinstance(_find_list(record, fields), list),
        lambda record: _turns(record, fields, names),
    )


def check_roles(roles: Mapping[str, str], has_fields: bool) -> None:
    """Raises UsageError where a role name is mapped to no role, or a known one to another role without `fields`."""
    for name, role in roles.items():
        if role not in ("user", "assistant", "system"):
            raise UsageError(f"roles maps {snippet(name)} to {snippet(role)}: expected user, assistant or system")
        known = ROLES.get(name.strip().lower(), role)
        if known != role and not has_fields:
            raise UsageError(f"roles maps {snippet(name)}, which is known as {known}: name the source's fields too")


def get_path(record: Any, path: str) -> Any:
    """The value at a dotted path ("a.b", "choices.0.text"); None where there is none. A key with a dot goes first."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for name in path.split("."):
        if isinstance(record, dict):
            record = record.get(name)
        elif isinstance(record, list) and name.isdecimal() and len(name) < 10:
            record = record[int(name)] if int(name) < len(record) else None
        else:
            return None
    return record


def _find_list(record: Record, fields: Mapping[str, str]) -> Any:
    """The list of turns: at the path that `fields` names, or under one of the usual keys."""
    if "messages" in fields:
        return read_list(get_path(record, fields["messages"]))
    return next((turns for key in LIST_KEYS if isinstance(turns := read_list(record.get(key)), list)), None)


def _first(path: str) -> str:
    return path.partition(".")[0]


def _check(fields: Mapping[str, str]) -> None:
    if unknown := [name for name in fields if name not in FIELDS]:
        raise UsageError(f"fields names {unknown[0][:60]!r}: expected {', '.join(FIELDS)}")
    if empty := [name for name, path in fields.items() if not isinstance(path, str) or not path]:
        raise UsageError(f"fields.{empty[0]} is empty: expected the name of a field of the source")
    has_pair = "question" in fields and "answer" in fields
    has_turns = any(name in fields for name in ("messages", *TURN_FIELDS))
    if not has_turns and not has_pair:
        raise UsageError("fields names neither messages nor both question and answer: one of the two is needed")
    if has_pair and any(name in fields for name in TURN_FIELDS):
        raise UsageError("fields names question and answer and also role or content: expected one of the two pairs")
    if has_turns and ("question" in fields) != ("answer" in fields):
        raise UsageError("fields names turns and one of question and answer: expected both, or role and content")


def _is_pair(record: Record, fields: Mapping[str, str]) -> bool:
    answer = get_path(record, fields["answer"])
    return isinstance(get_path(record, fields["question"]), str) and (isinstance(answer, str) or are_texts(answer))


def _pairs(record: Record, fields: Mapping[str, str]) -> Iterator[Dialogue]:
    values = {name: get_path(record, path) for name, path in fields.items()}
    plain = {"system": values.get("system"), "history": values.get("history")}
    yield read_pair(plain, join_texts(values["question"], values.get("context")), values["answer"])


def _turns(record: Record, fields: Mapping[str, str], names: Mapping[str, str]) -> Iterator[Dialogue]:
    turns = _find_list(record, fields)
    system = get_path(record, fields["system"]) if "system" in fields else None
    messages = alternate(system=read_text(system))
    messages += read_history(get_path(record, fields["history"])) if "history" in fields else []
    for turn in turns:
        if "question" in fields:
            question = join_texts(*(get_path(turn, fields[name]) for name in ("question", "context") if name in fields))
            messages += alternate(question, get_path(turn, fields["answer"]))
        else:
            messages.append(_read_turn(turn, fields, names))
    has_tools = any(message.role in TOOL_ROLES for message in messages)
    yield Dialogue(with_tools(messages, "", None) if has_tools else messages)


def _read_turn(turn: Any, fields: Mapping[str, str], names: Mapping[str, str]) -> Message:
    if not isinstance(turn, dict):
        return Message("", "")
    role_paths = [fields["role"]] if "role" in fields else _ROLE_KEYS
    text_paths = [fields["content"]] if "content" in fields else TEXT_KEYS
    role = next((value for path in role_paths if (value := get_path(turn, path)) is not None), None)
    content = next((value for path in text_paths if (value := get_path(turn, path)) is not None), None)
    return read_turn(turn, read_role(role if isinstance(role, str) else str(role), names), content)
