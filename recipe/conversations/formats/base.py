"""What a format is: how its records look, how they are recognized, and how they are read."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.readers.json_stream import is_too_deep

Record = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One published format.

    `keys` are alternatives: a record has all keys of at least one of them. `reads` are further keys that the format
    reads where they are there. A `specific` format is taken before the others; see `detect.recognize`.
    """

    shape: str  # a record as an example, for error messages
    keys: tuple[frozenset[str], ...]
    matches: Callable[[Record], bool]
    dialogues: Callable[[Record], Iterable[Any]]  # of messages.Dialogue; raises RefusedError
    reads: frozenset[str] = frozenset()
    specific: bool = False


class RefusedError(Exception):
    """A record that is recognized and must not become a conversation; `formats`: those of which one must be named."""

    def __init__(self, reason: Drop, detail: str, formats: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.formats = reason, detail, tuple(formats)


def keys(*alternatives: str) -> tuple[frozenset[str], ...]:
    """Each alternative as a set of keys, given as names with spaces between."""
    return tuple(frozenset(alternative.split()) for alternative in alternatives)


def are_strings(record: Mapping[str, Any], *names: str) -> bool:
    """Whether all these fields are there and hold text."""
    return all(isinstance(record.get(name), str) for name in names)


def is_list_of(value: Any, *names: str) -> bool:
    """Whether `value` is a list in which an element has all these keys.

    An empty list too: real dumps hold conversations without turns.
    """
    return isinstance(value, list) and (
        not value or any(isinstance(item, dict) and all(name in item for name in names) for item in value)
    )


def are_texts(value: Any) -> bool:
    """Whether `value` is a list of strings that is not empty."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def read_list(value: Any) -> Any:
    """`value`; or, where it is the text of a JSON list, that list."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        decoded = read_json(value)
        return decoded if isinstance(decoded, list) else value
    return value


def read_json(text: str) -> Any:
    """The value of a JSON text inside a record; None where it is broken or nested too deeply."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if isinstance(value, (dict, list)) and is_too_deep(value) else value
