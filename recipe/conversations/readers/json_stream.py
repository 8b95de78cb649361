"""The records of a JSON file, one at a time, whatever its size: an array, one object, or objects line by line; packed
with gzip or not.

Real dumps are larger than memory, are cut off, or have a broken line: every record that is whole is yielded, and what
is not is yielded as a `Rejected` that says where and why.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.readers import gzip_text
from recipe.core.errors import RecipeError

CHUNK = 1 << 20  # characters per read
_GAP = re.compile(r"[\s,\ufeff]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python marks an undecodable byte
_NEXT_LINE = re.compile(r"(?<=\n)\{")
_RECORD_START = re.compile(r'\{\s*"')
_FIRST_KEY = re.compile(r'\{\s*("[^"\\]{1,100}")\s*:')
EXCERPT = 1000  # characters
_BORDER = 256  # characters: no start of a record is longer
_NEAR_END = 16  # an error this close to the end of what was read may be a token cut in two


@dataclass(frozen=True)
class Rejected:
    """Something in a file that is no conversation."""

    source: str
    offset: int  # bytes from the file's start
    reason: Drop
    detail: str
    text: str = ""  # how it begins
    size: int = 0  # bytes


@dataclass(frozen=True)
class Record:
    """A whole JSON value, where it starts and how long it is, in bytes; of a table's row, its number."""

    offset: int
    value: Any
    size: int = 0


def excerpt(value: Any) -> str:
    """How a record begins, for a person who looks for it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:EXCERPT].encode("utf-8", "replace").decode()


def records(path: Path, source: str = "") -> Iterator[Record | Rejected]:
    """Every whole JSON value in the file's array, or every top-level value where it does not start with `[`.

    `source` is the name that a `Rejected` bears, the file's own if there is none. Raises RecipeError: no such file, or
    one that does not start like JSON.
    """
    try:
        file, unpacked = gzip_text.open_text(path)
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"there is no file {path}: name raw conversation files (JSON or JSON lines)") from None
    with file:
        text = _Window(file)
        text.skip_gap()
        if text.ended():
            raise RecipeError(f"{path} is empty: expected JSON or JSON lines with conversations")
        if text.peek() not in "[{":
            raise RecipeError(
                f"{path} starts with {_bytes(text.rest(20))}: expected JSON or JSON lines in UTF-8, so [ or {{ as its "
                "first character, packed with gzip or not at all"
            )
        in_array = text.peek() == "["
        text.at += in_array
        yield from _values(text, source or path.name, in_array)
        if unpacked and unpacked.damage:
            detail = f"the packed file is damaged ({unpacked.damage}), and what came after this was lost"
            yield Rejected(source or path.name, text.offset(), Drop.CUT_OFF, detail)


def _bytes(text: str) -> str:
    return ascii(text.encode("utf-8", "surrogateescape"))[1:]


def _values(text: "_Window", source: str, in_array: bool) -> Iterator[Record | Rejected]:
    opening = _RECORD_START  # how the array's records begin
    while True:
        text.skip_gap()
        if in_array and not text.ended() and text.peek() == "]":
            text.at += 1
            text.skip_gap()
            if not text.ended():
                start, begins = text.offset(), text.excerpt()
                lost = text.skip_to_end()
                detail = f"{lost:,} bytes after the array's end"
                yield Rejected(source, start, Drop.NOT_JSON, detail, begins, lost)
            return
        if text.ended():
            if in_array:
                yield Rejected(source, text.offset(), Drop.CUT_OFF, "the array is not closed; 0 bytes were lost")
            return
        start = text.offset()
        if opening is _RECORD_START:
            opening = text.opening()
        try:
            value, bad_byte = text.decode()
        except EOFError:
            begins = text.excerpt()
            lost = text.skip_to_end()
            detail = f"{lost:,} bytes of an unfinished record were lost"
            yield Rejected(source, start, Drop.CUT_OFF, detail, begins, lost)
            return
        except ValueError as error:
            begins = text.excerpt()
            text.skip_to_next(opening if in_array else _NEXT_LINE)
            lost = text.offset() - start
            yield Rejected(source, start, Drop.NOT_JSON, f"{error}; {lost:,} bytes were lost", begins, lost)
            if text.ended():
                return
        else:
            size = text.offset() - start
            if bad_byte:
                yield Rejected(source, start, Drop.NOT_UTF8, "a byte of it is not UTF-8", excerpt(value), size)
            else:
                yield Record(start, value, size)


class _Window:
    """The part of a file that is in memory, and the place in it."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.text, self.at, self.complete = "", 0, False
        self._bad_bytes = False  # whether any is in what is in memory
        self._bytes, self._counted = 0, 0  # how many bytes lie before text[_counted]

    def decode(self) -> tuple[Any, bool]:
        """The JSON value at this place, and whether a byte of it was not UTF-8; moves behind it.

        Raises EOFError where the file ends inside it, ValueError where it is broken.
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
                    self.at = end
                    return value, bad_byte
            self._read()

    def skip_gap(self) -> None:
        while True:
            self.at = _GAP.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing, too
            if self.at < len(self.text) or self.complete:
                return
            self._read()

    def skip_to_next(self, opening: re.Pattern[str]) -> None:
        """To the next place after this one that looks like the start of a record, or to the file's end."""
        self.at += 1
        while (found := opening.search(self.text, self.at)) is None and not self.complete:
            self.at = max(self.at, len(self.text) - _BORDER)
            self._read()
        self.at = found.start() if found else len(self.text)

    def skip_to_end(self) -> int:
        """To the file's end; how many bytes that were."""
        start = self.offset()
        self.at = len(self.text)
        while not self.complete:
            self._read()
            self.at = len(self.text)
        return self.offset() - start

    def opening(self) -> re.Pattern[str]:
        """How records begin, from the one at this place: with its first key, which a turn inside it does not have."""
        while len(self.text) - self.at < _BORDER and not self.complete:
            self._read()
        found = _FIRST_KEY.match(self.text, self.at)
        return re.compile(r"\{\s*" + re.escape(found[1]) + r"\s*:") if found else _RECORD_START

    def ended(self) -> bool:
        return self.complete and self.at >= len(self.text)

    def peek(self) -> str:
        return self.text[self.at]

    def rest(self, count: int) -> str:
        return self.text[self.at : self.at + count]

    def offset(self) -> int:
        """Bytes from the file's start to this place; every character is counted once, however often this is asked."""
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
        new = self.file.read(max(CHUNK, len(rest)))
        self.text, self.complete = rest + new, not new
        self._bad_bytes = not _is_utf8(self.text)


def _is_utf8(text: str) -> bool:
    """Whether all of it was UTF-8 in the file; a search for undecodable bytes takes ten times as long."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_decoder = json.JSONDecoder()
