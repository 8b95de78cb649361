"""The records of a JSON file, one at a time, whatever its size: an array, an array inside an object, or JSON Lines.

Real dumps are larger than memory, are cut off, or have a broken line: every record that is whole is yielded, and what
is not is yielded as a `Rejected` with its offset and the reason. Memory is bounded by `MAX_RECORD`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.readers import compressed
from recipe.core.errors import RecipeError
from recipe.core.text import printable

CHUNK = 1 << 20  # characters per read
MAX_RECORD = 64 << 20  # characters of a record; no conversation comes near it
MAX_DEPTH = 200  # of a record's nesting; pickling a value to a worker fails near 500
_GAP = re.compile(r"[\s,\ufeff]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python marks an undecodable byte
_NEXT_LINE = re.compile(r"(?<=\n)[\[{]")
_RECORD_START = re.compile(r'\{\s*"')
_FIRST_KEY = re.compile(r'\{\s*("[^"\\]{1,100}")\s*:')
# An array of records inside an object; a list of turns under the same key begins with another key.
_WRAPPER = re.compile(
    r'\{\s*"(?:data|train|items|records|rows|examples)"\s*:\s*\[(?=\s*\{\s*"(?!role|from|content|value))'
)
_NEXT_WRAPPER = re.compile(r'"(?:[^"\\]|\\.){0,100}"\s*:\s*')
_LIST_LINES = re.compile(r"\s*\[[^\n]*\]\r?\n\s*\[")  # lists line by line, each a record
_STRING_END = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STRUCTURE = re.compile(r'["{}\[\]]')
EXCERPT = 1000  # characters
_BORDER = 256  # characters: no start of a record is longer
_NEAR_END = 16  # an error this close to the end of what was read may be a token cut in two


class TooLargeError(Exception):
    """A value of more than `MAX_RECORD` characters."""


@dataclass(frozen=True)
class Rejected:
    """A record that cannot become a conversation."""

    source: str
    offset: int  # bytes from the file's start; of a table's row, its number
    reason: Drop
    detail: str
    text: str = ""  # how it begins
    size: int = 0  # bytes


@dataclass(frozen=True)
class Record:
    """A whole JSON value with its offset and its size, both in bytes; of a table's row, `offset` is its number."""

    offset: int
    value: Any
    size: int = 0


def excerpt(value: Any) -> str:
    """How a record begins, for a person who looks for it."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):
        text = repr(type(value))
    return text[:EXCERPT].encode("utf-8", "replace").decode()


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than `MAX_DEPTH` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = (
            [
                child
                for item in level
                for child in (item.values() if isinstance(item, dict) else item)
                if isinstance(child, (dict, list))
            ]
            if level
            else []
        )
        if not level:
            return False
    return True


def records(path: Path, source: str = "") -> Iterator[Record | Rejected]:
    """Every whole JSON value in the file's array, or every top-level value where the file is not one array.

    `source` names the source in a `Rejected`; the file's name if it is empty. Raises RecipeError: no such file, or one
    that does not start like JSON.
    """
    try:
        file, stream = compressed.open_text(path)
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(
            f"there is no file {printable(str(path))}: name raw conversation files (JSON or JSON Lines)"
        ) from None
    with file:
        text = _Window(file)
        text.skip_gap()
        if text.ended():
            raise RecipeError(f"{printable(str(path))} is empty: expected JSON or JSON Lines with conversations")
        if text.peek() not in "[{":
            raise RecipeError(
                f"{printable(str(path))} starts with {_bytes(text.rest(20))}: expected JSON or JSON Lines in UTF-8, so "
                "[ or { as its first character, as plain text or compressed with gzip or Zstandard"
            )
        yield from _Values(text, source or path.name).read()
        if stream and stream.damage:
            detail = f"the compressed file is damaged ({stream.damage}); the rest of it was lost"
            yield Rejected(source or path.name, text.offset(), Drop.CUT_OFF, detail)


def _bytes(text: str) -> str:
    return ascii(text.encode("utf-8", "surrogateescape"))[1:]


class _Values:
    """The values of a file, from its beginning."""

    def __init__(self, text: "_Window", source: str) -> None:
        self.text, self.source = text, source
        self.in_object = text.enter(_WRAPPER)
        self.in_array = self.in_object or (text.peek() == "[" and not text.begins(_LIST_LINES))
        if self.in_array and not self.in_object:
            text.at += 1
        self.opening = _RECORD_START  # how the array's records begin
        self.is_lost = False  # whether the rest of the file is

    def read(self) -> Iterator[Record | Rejected]:
        text = self.text
        while not self.is_lost:
            text.skip_gap()
            if self.in_array and not text.ended() and text.peek() == "]":
                text.at += 1
                if self.in_object and self._enter_next():
                    continue
                yield from self._read_rest()
                return
            if text.ended():
                if self.in_array:
                    yield self._reject(text.offset(), Drop.CUT_OFF, "the array is not closed; 0 bytes were lost")
                return
            yield from self._read_value()

    def _read_value(self) -> Iterator[Record | Rejected]:
        text = self.text
        start = text.offset()
        if self.opening is _RECORD_START:
            self.opening = text.opening()
        try:
            value, bad_byte, brackets = text.decode()
        except EOFError:
            self.is_lost = True
            begins = text.excerpt()
            lost = text.skip_to_end()
            yield self._reject(start, Drop.CUT_OFF, f"{lost:,} bytes of an unfinished record were lost", begins, lost)
        except TooLargeError:
            begins = text.excerpt()
            text.skip_value() if self.in_array else text.skip_to_next(_NEXT_LINE)
            lost, self.is_lost = text.offset() - start, text.ended()
            yield self._reject(start, Drop.TOO_LARGE, f"{lost:,} bytes were not read", begins, lost)
        except ValueError as error:
            begins = text.excerpt()
            text.skip_to_next(self.opening if self.in_array else _NEXT_LINE)
            lost, self.is_lost = text.offset() - start, text.ended()
            yield self._reject(start, Drop.NOT_JSON, f"{error}; {lost:,} bytes were lost", begins, lost)
        else:
            size = text.offset() - start
            if bad_byte:
                yield self._reject(start, Drop.NOT_UTF8, "a byte of it is not UTF-8", excerpt(value), size)
            elif brackets > MAX_DEPTH and is_too_deep(value):
                yield self._reject(start, Drop.TOO_DEEP, f"{size:,} bytes", excerpt(value), size)
            else:
                yield Record(start, value, size)

    def _reject(self, start: int, reason: Drop, detail: str, begins: str = "", lost: int = 0) -> Rejected:
        return Rejected(self.source, start, reason, detail, begins, lost)

    def _read_rest(self) -> Iterator[Rejected]:
        """What follows the array is not a record; a closing brace of the object around it is not lost."""
        text = self.text
        text.skip_gap()
        if self.in_object and not text.ended() and text.peek() == "}":
            text.at += 1
            text.skip_gap()
        if not text.ended():
            start, begins = text.offset(), text.excerpt()
            lost = text.skip_to_end()
            yield self._reject(start, Drop.NOT_JSON, f"{lost:,} bytes after the array's end", begins, lost)

    def _enter_next(self) -> bool:
        """To the next array of the object around the records, past its other fields; False where there is none."""
        text = self.text
        while True:
            text.skip_gap()
            if text.ended() or not text.enter(_NEXT_WRAPPER):
                return False
            if not text.ended() and text.peek() == "[":
                text.at += 1
                return True
            try:
                text.decode()
            except (EOFError, ValueError, TooLargeError):
                return False


class _Window:
    """The part of a file that is in memory, and the position in it."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.text, self.at, self.complete = "", 0, False
        self._bad_bytes = False  # whether any is in what is in memory
        self._bytes, self._counted = 0, 0  # how many bytes lie before text[_counted]

    def decode(self) -> tuple[Any, bool, int]:
        """(the JSON value here, whether a byte of it was not UTF-8, its number of opening brackets); moves behind it.

        Raises EOFError where the file ends inside it, ValueError where it is broken, TooLargeError.
        """
        while True:
            try:
                value, end = _decoder.raw_decode(self.text, self.at)
            except RecursionError:
                raise ValueError("nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _NEAR_END
                if cut and self.complete:
                    raise EOFError from None
                if not cut:
                    raise ValueError(f"{error.msg} at character {error.pos - self.at} of the record") from None
            else:
                if self.complete or end < len(self.text):
                    bad_byte = self._bad_bytes and _NOT_UTF8.search(self.text, self.at, end) is not None
                    brackets = self.text.count("[", self.at, end) + self.text.count("{", self.at, end)
                    if end - self.at > MAX_RECORD:
                        raise TooLargeError
                    self.at = end
                    return value, bad_byte, brackets
            if len(self.text) - self.at > MAX_RECORD:
                raise TooLargeError
            self._read()

    def skip_gap(self) -> None:
        while True:
            self.at = _GAP.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing, too
            if self.at < len(self.text) or self.complete:
                return
            self._read()

    def skip_to_next(self, opening: re.Pattern[str]) -> None:
        """To the next position that looks like the start of a record, or to the file's end."""
        self.at += 1
        while (found := opening.search(self.text, self.at)) is None and not self.complete:
            self.at = max(self.at, len(self.text) - _BORDER)
            self._read()
        self.at = found.start() if found else len(self.text)

    def skip_to_end(self) -> int:
        """To the file's end. Returns how many bytes were skipped."""
        start = self.offset()
        self.at = len(self.text)
        while not self.complete:
            self._read()
            self.at = len(self.text)
        return self.offset() - start

    def skip_value(self) -> None:
        """Past the list, object or string here, or to the file's end, without holding it in memory."""
        depth, in_string = 0, False
        while True:
            found = (_STRING_END.match if in_string else _STRUCTURE.search)(self.text, self.at)
            if found is None:
                self._skip_read(in_string)
                if self.ended():
                    return
                continue
            self.at = found.end()
            if in_string or found[0] == '"':
                in_string = not in_string
            else:
                depth += 1 if found[0] in "[{" else -1
            if depth <= 0 and not in_string:
                return

    def _skip_read(self, in_string: bool) -> None:
        """Read on, keeping what could be the first half of an escape."""
        backslashes = len(self.text) - len(self.text.rstrip("\\")) if in_string else 0
        self.at = max(self.at, len(self.text) - (backslashes % 2 if self.at < len(self.text) else 0))
        if self.complete:
            self.at = len(self.text)
        else:
            self._read()

    def enter(self, pattern: re.Pattern[str]) -> bool:
        """Move past `pattern` where it matches here."""
        self._fill(_BORDER)
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found is not None

    def begins(self, pattern: re.Pattern[str]) -> bool:
        """Whether `pattern` matches here, within the first read."""
        self._fill(CHUNK)
        return pattern.match(self.text, self.at) is not None

    def _fill(self, count: int) -> None:
        """Read until `count` characters are in memory, or the file has ended."""
        while len(self.text) - self.at < count and not self.complete:
            self._read()

    def opening(self) -> re.Pattern[str]:
        """How records begin, from the one here: with its first key, which a turn inside it does not have."""
        self._fill(_BORDER)
        found = _FIRST_KEY.match(self.text, self.at)
        return re.compile(r"\{\s*" + re.escape(found[1]) + r"\s*:") if found else _RECORD_START

    def ended(self) -> bool:
        return self.complete and self.at >= len(self.text)

    def peek(self) -> str:
        return self.text[self.at]

    def rest(self, count: int) -> str:
        return self.text[self.at : self.at + count]

    def offset(self) -> int:
        """Bytes from the file's start to this position; every character is counted only once."""
        new = self.text[self._counted : self.at]
        self._bytes += len(new) if new.isascii() else len(new.encode("utf-8", "surrogateescape"))
        self._counted = self.at
        return self._bytes

    def excerpt(self) -> str:
        return excerpt(self.rest(EXCERPT))

    def _read(self) -> None:
        self.offset()
        rest = self.text[self.at :]
        self.at = self._counted = 0
        # Doubling: a value of 50 MB is parsed a few times over, not fifty.
        new = self.file.read(min(max(CHUNK, len(rest)), MAX_RECORD + 1))
        self.text, self.complete = rest + new, not new
        self._bad_bytes = not is_utf8(self.text)


def is_utf8(text: str) -> bool:
    """Whether no byte of the text was undecodable; a search for such bytes takes ten times as long."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_decoder = json.JSONDecoder()
