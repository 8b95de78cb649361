"""Raw files to conversations: which layout a record has is told by looking at it, or named by whoever knows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.records import LAYOUTS, Layout
from recipe.conversations.formats.transcripts import TRANSCRIPTS
from recipe.conversations.formats.trees import TREES
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.readers import json_stream, tables
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.core.errors import RecipeError, UsageError

__all__ = ["FORMATS", "Conversation", "Message", "check", "conversations", "named", "raw_records", "read"]

# In this order: a transcript inside Alpaca's fields must not pass for a single question.
FORMATS: dict[str, Layout] = {**TRANSCRIPTS, **TREES, **LAYOUTS}
ID_KEYS = ("id", "conversation_id", "message_tree_id", "prompt_id", "new dialog id")
GIVE_UP_AFTER = 100  # records in no known format at a file's start


def read(path: Path, at: Callable[[int], object] = lambda offset: None) -> Iterator[Conversation | Rejected]:
    """The file's conversations in order, as they are; what is no conversation comes as a `Rejected`.

    `at` is told the byte offset of each record. Raises RecipeError: no such file, no JSON, nothing in a known format.
    """
    check(path)
    for number, record in enumerate(raw_records(path, path.name)):
        at(record.offset)
        yield from conversations(record, number, path.name)


def raw_records(path: Path, source: str) -> Iterator[Record | Rejected]:
    """Every record of a JSON file, a Parquet file or a folder that `datasets` saved; one at a time."""
    return tables.records(path) if tables.is_table(path) else json_stream.records(path, source)


def conversations(
    record: Record | Rejected, number: int, source: str, layout: Layout | None = None
) -> Iterator[Conversation | Rejected]:
    """What the file's record with this number holds, by its own look or by the given layout; see `read`."""
    if isinstance(record, Rejected):
        yield record
        return
    stem = source.partition(".")[0]
    whole = _fitting(record.value, layout)
    for name, value in [("", record.value)] if whole else _keyed(record.value, layout) or [("", record.value)]:
        if (fitting := whole or _fitting(value, layout)) is None:
            yield Rejected(
                source, record.offset, Drop.UNKNOWN_FORMAT, _look(value), json_stream.excerpt(value), record.size
            )
            continue
        dialogues = list(fitting.dialogues(value))
        base = _id(value) or name or f"{stem}-{number}"
        for index, dialogue in enumerate(dialogues):
            name_ = base if len(dialogues) == 1 else f"{base}/{index}"
            yield Conversation(name_, tuple(dialogue.messages), source, dialogue.passed_over)
        if not dialogues:
            yield Conversation(base, (), source)


def check(path: Path, layout: Layout | None = None) -> None:
    """Raises RecipeError where none of the file's first records is in a known format (or in the given one)."""
    broken, strange = "", ""
    for number, record in enumerate(raw_records(path, path.name)):
        if number == GIVE_UP_AFTER:
            break
        if isinstance(record, Rejected):
            broken = broken or f"{record.reason} at byte {record.offset:,}, {record.detail}"
        elif _fitting(record.value, layout) or _keyed(record.value, layout):
            return
        else:
            strange = strange or _look(record.value)
    if broken and not strange:
        raise RecipeError(f"{path} holds no whole record: found {broken}; get the file again, or mend it there")
    known = FORMATS if layout is None else {name: item for name, item in FORMATS.items() if item is layout}
    shapes = "; ".join(f"{name} {item.shape}" for name, item in known.items())
    raise RecipeError(f"{path} is in no known format: found {strange or 'no record'}; known are {shapes}")


def named(name: str) -> Layout:
    """The layout of that name. Raises UsageError naming the known ones."""
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _fitting(value: Any, layout: Layout | None) -> Layout | None:
    if not isinstance(value, dict):
        return None
    return next((item for item in ([layout] if layout else FORMATS.values()) if item.matches(value)), None)


def _keyed(value: Any, layout: Layout | None) -> list[tuple[str, Any]]:
    """The records of a file that is one object from names to records, as CrossWOZ's and DialogStudio's; else none."""
    if not isinstance(value, dict):
        return []
    return list(value.items()) if any(_fitting(inner, layout) for inner in value.values()) else []


def _id(record: dict[str, Any]) -> str:
    for key in ID_KEYS:
        if isinstance(record.get(key), (str, int)):
            return str(record[key])
    return ""


def _look(record: Any) -> str:
    """What a strange record looks like, without its content."""
    if isinstance(record, dict):
        keys = ", ".join(repr(key)[:40] for key in list(record)[:8])
        return f"an object with the keys {keys}" if keys else "an empty object"
    return f"a JSON {type(record).__name__}"
