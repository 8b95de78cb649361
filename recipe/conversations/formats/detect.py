"""Records to conversations: the format of a record is recognized by its keys, or named in the config."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.base import Format, RefusedError
from recipe.conversations.formats.marks import refuse_marked
from recipe.conversations.formats.pair_lists import PAIR_LISTS
from recipe.conversations.formats.pairs import CONTEXTS, PAIRS, RANKED
from recipe.conversations.formats.preferences import PREFERENCES
from recipe.conversations.formats.rendered import RENDERED
from recipe.conversations.formats.transcripts import LABELLED, TRANSCRIPTS
from recipe.conversations.formats.trees import TREES, group_messages, is_flat_message
from recipe.conversations.formats.turns import CHATS, CROSSWOZ
from recipe.conversations.messages import Conversation, Dialogue, Message
from recipe.conversations.readers import files
from recipe.conversations.readers.json_stream import Record, Rejected, excerpt
from recipe.core.errors import RecipeError, UsageError
from recipe.core.text import printable, snippet

# Specific formats are tried in this order: a transcript inside Alpaca's fields must not pass for a single question.
FORMATS: dict[str, Format] = {
    **TRANSCRIPTS, **TREES, **CROSSWOZ, **PREFERENCES, **CHATS, **PAIR_LISTS, **PAIRS, **LABELLED, **RENDERED, **RANKED
}  # fmt: skip
NAMED_ONLY = ("oasst-all", "ranked-alpaca")  # never recognized: only a config can say that they are meant
_KEYS = frozenset().union(*(keys for item in FORMATS.values() for keys in item.keys))
ID_KEYS = ("id", "conversation_id", "message_tree_id", "prompt_id", "new dialog id")
WRAPPERS = ("data", "train", "items", "records", "rows", "examples", "conversations", "validation", "valid", "test")
_TEXTS = (*LABELLED, *RENDERED)
_COMMON = ("sharegpt", "messages", "alpaca")
GIVE_UP_AFTER = 100  # records at a file's start


def read(path: Path, at: Callable[[int], object] = lambda offset: None) -> Iterator[Conversation | Rejected]:
    """The file's conversations in order, unchanged; a record that is not one comes as a `Rejected`.

    `at` is called with the byte offset of each record. Raises RecipeError: the file is missing, cannot be read, or
    holds nothing in a known format.
    """
    check(path)
    for number, record in enumerate(raw_records(path, path.name)):
        at(record.offset)
        yield from conversations(record, number, path.name)


def raw_records(path: Path, source: str) -> Iterator[Record | Rejected]:
    """Every record of a source (see `files.records`), one at a time; flat Open Assistant messages come as trees."""
    records = files.records(path, source)
    for record in records:
        if not isinstance(record, Record):
            yield record
        elif is_flat_message(record.value):
            yield from group_messages(_chain(record, records), source)
            return
        else:
            yield record
            yield from records
            return


def _chain(first: Record, rest: Iterator[Record | Rejected]) -> Iterator[Record | Rejected]:
    yield first
    yield from rest


def conversations(
    record: Record | Rejected,
    number: int,
    source: str,
    format: Format | None = None,
    answers: str = "first",
    roles: Mapping[str, str] | None = None,
) -> Iterator[Conversation | Rejected]:
    """The conversations in the source's record with this number.

    The format is recognized unless it is given. `answers`: of several unranked answers "first", or "all" of them.
    `roles` maps role names that are not known to user, assistant or system.
    """
    if isinstance(record, Rejected):
        yield record
        return
    for name, value, fitting in _find_records(record.value, format):
        try:
            if isinstance(fitting, RefusedError):
                raise fitting
            refuse_marked(value)
            dialogues = [whole for item in fitting.dialogues(value) for whole in _choose_answers(item, answers)]
        except RefusedError as error:
            yield Rejected(source, record.offset, error.reason, error.detail, excerpt(value), record.size)
            continue
        id_ = _read_id(value) or name or f"{source.partition('.')[0]}-{number}"
        for index, dialogue in enumerate(dialogues or [Dialogue([])]):
            messages = _rename(dialogue.messages, roles) if roles else dialogue.messages
            whole_id = id_ if len(dialogues) < 2 else f"{id_}/{index}"
            yield Conversation(whole_id, tuple(messages), source, dialogue.passed_over, dialogue.unranked)


def _rename(messages: list[Message], roles: Mapping[str, str]) -> list[Message]:
    names = {name.strip().lower(): role for name, role in roles.items()}
    return [replace(message, role=names.get(message.role, message.role)) for message in messages]


def _find_format(value: Any, format: Format | None) -> Format | RefusedError:
    """The given format where the value has it, or the recognized one; else why there is none."""
    try:
        fitting = recognize(value) if format is None else format if _fits(value, format) else None
    except RefusedError as error:
        return error
    return fitting or RefusedError(Drop.UNKNOWN_FORMAT, describe(value))


def _fits(value: Any, format: Format) -> bool:
    return isinstance(value, dict) and format.matches(value)


def recognize(value: Any) -> Format | None:
    """The known format of a record; None where there is none.

    Raises RefusedError where two formats fit that would read it differently.
    """
    if not isinstance(value, dict):
        return None
    fitting: list[str] = []
    for name in _find_candidates(tuple([key for key in value if key in _KEYS])):
        item = FORMATS[name]
        if item.matches(value):
            if item.specific:
                return item
            fitting.append(name)
    if not fitting:
        return None
    fitting = [name for name in fitting if name not in _TEXTS] or fitting  # a text is made of the fields beside it
    best = fitting if len(fitting) == 1 else _find_widest(tuple(fitting))
    if len(best) > 1:
        _compare_readings(value, best)
    if best == ["xtuner"] and list(value) == ["conversations"]:
        detail = "a list of pairs can be read as xtuner (one conversation), or as one for each"
        raise RefusedError(Drop.AMBIGUOUS, detail, best)
    return FORMATS[best[0]]


@lru_cache(1024)
def _find_candidates(keys: tuple[str, ...]) -> list[str]:
    """The names of the formats that a record with these keys can have, in the order in which they are tried."""
    present = frozenset(keys)
    return [
        name
        for name, item in FORMATS.items()
        if name not in NAMED_ONLY and any(needed <= present for needed in item.keys)
    ]


@lru_cache(1024)
def _find_widest(names: tuple[str, ...]) -> list[str]:
    """Of these formats those that no other one covers."""
    return [name for name in names if not any(_covers(FORMATS[other], FORMATS[name]) for other in names)]


def _covers(one: Format, other: Format) -> bool:
    """Whether `one` reads all that `other` needs, and `other` does not read all that `one` needs."""
    return _reads_all(one, other) and not _reads_all(other, one)


def _reads_all(one: Format, other: Format) -> bool:
    return any(needed <= own | one.reads for own in one.keys for needed in other.keys)


def _compare_readings(value: dict[str, Any], names: list[str]) -> None:
    """Raises RefusedError where the formats read different turns."""
    readings = [[dialogue.messages for dialogue in FORMATS[name].dialogues(value)] for name in names]
    if any(reading != readings[0] for reading in readings):
        raise RefusedError(Drop.AMBIGUOUS, f"{describe(value)} can be read as {' or '.join(names)}", names)


def _choose_answers(dialogue: Dialogue, answers: str) -> Iterator[Dialogue]:
    if answers == "first" or not dialogue.alternatives:
        more = len(dialogue.alternatives)
        yield Dialogue(dialogue.messages, dialogue.passed_over + more, unranked=more)
        return
    yield dialogue
    for answer in dialogue.alternatives:
        yield Dialogue([*dialogue.messages[:-1], Message("assistant", answer)])


def _find_records(value: Any, format: Format | None) -> list[tuple[str, Any, Format | RefusedError]]:
    """(name, record, its format): mostly the value itself; also the records of a list, or of an object around them."""
    fitting = _find_format(value, format)
    if not _is_unknown(fitting):
        return [("", value, fitting)]
    if isinstance(value, list) and any(isinstance(item, dict) and ("role" in item or "from" in item) for item in value):
        turns = {"messages": value}
        return [("", turns, _find_format(turns, format))]
    for named_items in _unwrap(value):
        inner = [(name, item, _find_format(item, format)) for name, item in named_items]
        known = sum(not _is_unknown(fitting) for _, _, fitting in inner)
        if known > (len(inner) / 2 if inner and inner[0][0] else 0):  # by name: most of them, or it is something else
            return inner
    return [("", value, fitting)]


def _unwrap(value: Any) -> Iterator[list[tuple[str, Any]]]:
    """The values that could be records in a list, in the lists of an object, or in an object by name (CrossWOZ)."""
    if isinstance(value, list):
        yield [("", item) for item in value]
    if isinstance(value, dict):
        if isinstance(value.get("row"), dict):  # the data set viewer of Hugging Face
            yield [("", value["row"])]
        lists = [value[key] for key in WRAPPERS if isinstance(value.get(key), list)]
        yield [("", _open_row(item)) for items in lists for item in items]
        yield list(value.items())


def _open_row(item: Any) -> Any:
    return item["row"] if isinstance(item, dict) and isinstance(item.get("row"), dict) else item


def _is_unknown(fitting: Format | RefusedError) -> bool:
    return isinstance(fitting, RefusedError) and fitting.reason is Drop.UNKNOWN_FORMAT


def check(path: Path, format: Format | None = None) -> None:
    """Raises RecipeError where none of the source's first records is in a known format, or in the given one."""
    broken, strange, value = "", "", None
    for number, record in enumerate(raw_records(path, path.name)):
        if number == GIVE_UP_AFTER:
            break
        if isinstance(record, Rejected):
            broken = broken or f"{record.reason} at byte {record.offset:,}, {record.detail}"
            continue
        for _, item, fitting in _find_records(record.value, format):
            if not isinstance(fitting, RefusedError):
                return
            if fitting.reason is Drop.AMBIGUOUS:
                raise RecipeError(f"{_show(path)}: {fitting.detail}; set the source's format or fields")
            strange, value = strange or fitting.detail, value or item
    if broken and not strange:
        raise RecipeError(f"{_show(path)} holds no whole record: found {broken}; get the file again or repair it")
    if format is not None:
        raise RecipeError(
            f"{_show(path)} is not in the given format: found {strange or 'no record'}, expected "
            f"{snippet(format.shape)}"
        )
    near = ", ".join(f"{name} {FORMATS[name].shape}" for name in find_nearest(value))
    raise RecipeError(
        f"{_show(path)} is in no known format: found {strange or 'no record'}; the nearest formats are {near}; "
        "`python -m recipe.corpus --source FILE --inspect` shows the file and how to name its fields"
    )


def _show(path: Path) -> str:
    return printable(str(path))


def find_nearest(value: Any, count: int = 3) -> list[str]:
    """The names of the known formats that share most keys, or words of keys, with a record, the nearest first."""
    names = {str(key).lower() for key in value} if isinstance(value, dict) else set()
    words = {word for name in names for word in re.split(r"[\W_]+", name)}

    def distance(name: str) -> tuple[float, int, bool]:
        """The closest of the format's alternatives; where nothing is shared, the most common formats."""
        near = [sum(1.0 if key in names else 0.5 if key in words else 0 for key in keys) for keys in FORMATS[name].keys]
        missing = [len(keys) - score for keys, score in zip(FORMATS[name].keys, near, strict=True)]
        best = min(range(len(near)), key=lambda index: (-near[index], missing[index]))
        return -near[best], round(missing[best]), name not in _COMMON

    return sorted((name for name in FORMATS if name not in NAMED_ONLY), key=distance)[:count]


def named(name: str) -> Format:
    """The format of that name. Raises UsageError naming the known ones."""
    if name not in FORMATS:
        raise UsageError(f"there is no format {snippet(repr(name))}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _read_id(record: dict[str, Any]) -> str:
    for key in ID_KEYS:
        if isinstance(record.get(key), (str, int)):
            return str(record[key])
    return ""


def describe(record: Any) -> str:
    """What kind of value a record is, without its content."""
    if isinstance(record, dict):
        names = ", ".join(repr(key)[:40] for key in list(record)[:8])
        context = next((key for key in CONTEXTS if record.get(key)), "")
        more = f", of which {context!r} would be left out of the question" if context else ""
        return f"an object with the keys {names}{more}" if names else "an empty object"
    return f"a JSON {type(record).__name__}"
