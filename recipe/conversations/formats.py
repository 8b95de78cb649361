"""Raw files to conversations: which layouts are known, and how each is read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.conversations.accounting import Drop
from recipe.conversations.jsonstream import Rejected, records
from recipe.errors import RecipeError

# Names that public sets use for the two sides. Any other role is passed on as it is, for `cleaning` to drop and count.
ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}
GIVE_UP_AFTER = 100  # records in no known format at a file's start


@dataclass(frozen=True)
class Message:
    """One turn. In a prepared conversation `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """What one record of a source holds."""

    id: str
    messages: tuple[Message, ...]
    source: str  # the file's name


@dataclass(frozen=True)
class Format:
    """A layout of records: how it looks, how it is told from others, and how it is read."""

    shape: str
    matches: Callable[[dict[str, Any]], bool]
    messages: Callable[[dict[str, Any]], Iterator[Message]]


def _sharegpt(record: dict[str, Any]) -> Iterator[Message]:
    for turn in record["conversations"]:
        yield _message(turn, "from", "value")


def _openai(record: dict[str, Any]) -> Iterator[Message]:
    for turn in record["messages"]:
        yield _message(turn, "role", "content")


FORMATS = {
    "ShareGPT": Format(
        '{"conversations": [{"from": "human", "value": "..."}, ...]}',
        lambda record: _is_list_of(record.get("conversations"), "from"),
        _sharegpt,
    ),
    "OpenAI messages": Format(
        '{"messages": [{"role": "user", "content": "..."}, ...]}',
        lambda record: _is_list_of(record.get("messages"), "role"),
        _openai,
    ),
}


def read(path: Path, at: Callable[[int], object] = lambda offset: None) -> Iterator[Conversation | Rejected]:
    """The file's conversations in order, as they are; what is no conversation comes as a `Rejected`.

    Each record is read by the format it looks like; `at` is told the byte offset of each. Raises RecipeError: no such
    file, no JSON, or nothing in a known format.
    """
    known = strange = 0
    first_strange = ""
    for number, record in enumerate(records(path)):
        at(record.offset)
        if isinstance(record, Rejected):
            yield record
            first_strange = first_strange or f"{record.reason} at byte {record.offset:,}"
            continue
        format = next((item for item in FORMATS.values() if _is_a(item, record.value)), None)
        if format is not None:
            known += 1
            yield Conversation(_id(record.value, path, number), tuple(format.messages(record.value)), path.name)
            continue
        strange += 1
        first_strange = first_strange or _look(record.value)
        if not known and strange == GIVE_UP_AFTER:
            break
        yield Rejected(path.name, record.offset, Drop.UNKNOWN_FORMAT, _look(record.value))
    if not known:
        shapes = "; ".join(f"{name} {format.shape}" for name, format in FORMATS.items())
        raise RecipeError(f"{path} is in no known format: found {first_strange or 'no record'}; known are {shapes}")


def _is_a(format: Format, record: Any) -> bool:
    return isinstance(record, dict) and format.matches(record)


def _is_list_of(value: Any, key: str) -> bool:
    """A list of turns; an empty one too, since real dumps hold conversations without turns."""
    return isinstance(value, list) and (not value or any(isinstance(turn, dict) and key in turn for turn in value))


def _message(turn: Any, role: str, content: str) -> Message:
    """A turn of the wrong shape becomes a blank one, which `cleaning` drops and counts."""
    if not isinstance(turn, dict):
        return Message("", "")
    name = turn.get(role)
    name = name.strip().lower() if isinstance(name, str) else ""
    return Message(ROLES.get(name, name), _text(turn.get(content)))


def _text(content: Any) -> str:
    """A string as it is; of OpenAI's typed parts the text ones. Anything else is no text."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _id(record: dict[str, Any], path: Path, number: int) -> str:
    for key in ("id", "conversation_id"):
        if isinstance(record.get(key), (str, int)):
            return str(record[key])
    return f"{path.stem}-{number}"


def _look(record: Any) -> str:
    """What a strange record looks like, without its content."""
    if isinstance(record, dict):
        keys = ", ".join(repr(key)[:40] for key in list(record)[:8])
        return f"an object with the keys {keys}" if keys else "an empty object"
    return f"a JSON {type(record).__name__}"
