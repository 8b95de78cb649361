"""CSV and TSV files with named columns, compressed or not: each row is a record of texts."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.readers import compressed
from recipe.conversations.readers.json_stream import MAX_RECORD, Record, Rejected, excerpt, is_utf8
from recipe.core.errors import RecipeError
from recipe.core.text import printable, snippet

_DELIMITERS = ",;\t"


class _TooLargeError(Exception):
    """A row over the limit: where the next one begins is then not known."""


def is_delimited(path: Path) -> bool:
    """Whether the file's name ends as one of a CSV or TSV file, compressed or not."""
    return _suffix(path) in (".csv", ".tsv")


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in compressed.SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def records(path: Path, source: str) -> Iterator[Record | Rejected]:
    """Every row below the header; `offset` is its number. Raises RecipeError: empty, or columns without a name."""
    csv.field_size_limit(MAX_RECORD)
    file, stream = compressed.open_text(path)
    with file:
        lines = _Lines(file)
        try:
            header = next(lines, "").removeprefix("\ufeff")
        except _TooLargeError:
            header = ""
        if "\0" in header:
            raise RecipeError(f"{printable(str(path))} is not in UTF-8 (its header has NUL bytes): save it as UTF-8")
        delimiter = "\t" if _suffix(path) == ".tsv" else max(_DELIMITERS, key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        _check_names(path, names)
        yield from _rows(csv.reader(lines, delimiter=delimiter, strict=True), lines, names, source)
        if stream and stream.damage:
            detail = f"the compressed file is damaged ({stream.damage}); the rest of it was lost"
            yield Rejected(source, 0, Drop.CUT_OFF, detail)


def _check_names(path: Path, names: list[str]) -> None:
    shown = printable(str(path))
    if not any(names):
        raise RecipeError(f"{shown} has no header: expected the names of its columns in the first line")
    if len(set(names)) < len(names) or not all(names[1:]):  # pandas writes its index first, without a name
        raise RecipeError(f"{shown} has the header {snippet(names)}: expected a different name for every column")


class _Lines:
    """The file's lines; at most 64 MB of them between two calls of `end_row`."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self.taken, self.is_at_end = file, 0, False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_RECORD + 1)
        if not line:
            self.is_at_end = True
            raise StopIteration
        self.taken += len(line)
        if self.taken > MAX_RECORD:
            raise _TooLargeError
        return line

    def end_row(self) -> None:
        self.taken = 0


def _rows(rows: Iterator[list[str]], lines: _Lines, names: list[str], source: str) -> Iterator[Record | Rejected]:
    number = 0
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except _TooLargeError:
            detail = "a row is over 64 MB; it and all after it were not read"
            yield Rejected(source, number, Drop.TOO_LARGE, detail)
            return
        except csv.Error as error:  # the reader begins anew at the next line
            detail = f"{error}, in {lines.taken:,} characters"
            yield Rejected(source, number, Drop.CUT_OFF if lines.is_at_end else Drop.WRONG_CELLS, detail)
            number += 1
            lines.end_row()
            continue
        lines.end_row()
        if not cells:  # an empty line
            continue
        size = sum(map(len, cells))
        if len(cells) != len(names):
            detail = f"{len(cells)} cells, expected {len(names)}"
            yield Rejected(source, number, Drop.WRONG_CELLS, detail, excerpt(cells), size)
        elif not all(map(is_utf8, cells)):
            yield Rejected(source, number, Drop.NOT_UTF8, "a byte of it is not UTF-8", excerpt(cells), size)
        else:
            yield Record(number, dict(zip(names, cells, strict=True)), size)
        number += 1
