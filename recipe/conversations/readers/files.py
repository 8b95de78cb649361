"""The records of a source, whatever kind of file it is: JSON, JSON Lines, CSV, TSV, Parquet, Arrow."""

from collections.abc import Iterator
from pathlib import Path

from recipe.conversations.readers import delimited, json_stream, tables
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.core.errors import RecipeError, UsageError
from recipe.core.text import printable


def records(path: Path, source: str) -> Iterator[Record | Rejected]:
    """Every record of a file, or of a folder that `datasets` saved, one at a time.

    `source` names the source in a `Rejected`. Raises RecipeError: the path is missing, is not a file or folder, or
    holds nothing that can be read.
    """
    check_path(path)
    if tables.is_table(path):
        return tables.records(path, source)
    if delimited.is_delimited(path):
        return delimited.records(path, source)
    return json_stream.records(path, source)


def check_path(path: Path) -> None:
    """Raises RecipeError for a path that must not be opened."""
    shown = printable(str(path))
    try:
        exists, is_regular = path.exists(), path.is_file() or path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or with a NUL
        raise RecipeError(f"{shown[:200]} cannot be opened ({error}): name raw conversation files") from None
    if not exists:
        raise UsageError(f"there is no file {shown}: name raw conversation files (JSON, JSON Lines, CSV or Parquet)")
    if not is_regular:
        raise RecipeError(f"{shown} is a pipe or a device: expected a regular file; save its content in one first")
