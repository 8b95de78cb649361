"""Rows of Parquet files and of folders that the `datasets` library saved, as records.

Only Arrow's own readers are used: a data set may bring a script, and scripts are not run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.readers.json_stream import MAX_RECORD, Record, Rejected, excerpt, is_too_deep
from recipe.core.errors import RecipeError
from recipe.core.text import printable, snippet

ROWS = 64  # per read: with values of the largest size, a read of more would not fit in memory
_SMALL = 16 << 20  # bytes of a batch that is converted as a whole


def is_table(path: Path) -> bool:
    """Whether `path` is a Parquet or Arrow file, or a folder."""
    return path.is_dir() or path.suffix in (".parquet", ".arrow")


def records(path: Path, source: str = "") -> Iterator[Record | Rejected]:
    """Every row; `offset` is its number, since rows have no offset in bytes.

    Raises RecipeError: a folder without tables, or a file that is not a table.
    """
    import pyarrow as pa

    number = 0
    for file in files(path):
        try:
            for batch in _batches(file):
                for item in _rows(batch, number, source or path.name):
                    yield item
                    number += 1
        except (pa.ArrowException, OSError, OverflowError, RuntimeError, MemoryError, UnicodeDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecipeError(
                f"{printable(str(file))} cannot be read ({snippet(reason, 200)}): expected Parquet or Arrow; download "
                "it again"
            ) from None


def files(path: Path) -> list[Path]:
    """The tables of a folder in the order in which `datasets` wrote them; of a DatasetDict those of every split."""
    if path.is_file():
        return [path]
    found: list[Path] = []
    for state in sorted(path.rglob("state.json")):
        found += [state.parent / _check_name(name, state) for name in _read_state(state)]
    found = found or sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.arrow"))
    if not found:
        raise RecipeError(
            f"{printable(str(path))} holds no Parquet file and nothing that `datasets` saved: name raw conversation "
            "files"
        )
    return found


def _read_state(path: Path) -> list[Any]:
    try:
        return [file["filename"] for file in json.loads(path.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        raise RecipeError(
            f"{printable(str(path))} is not what `datasets` writes: expected _data_files in it; save the set again"
        ) from None


def _check_name(name: Any, state: Path) -> str:
    if not isinstance(name, str) or Path(name).name != name or not (state.parent / name).is_file():
        raise RecipeError(f"{printable(str(state))} names {snippet(repr(name))}: expected a file beside it")
    return name


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as table:
            _check_values(table.metadata)
            yield from table.iter_batches(batch_size=ROWS)
        return
    with pa.OSFile(str(file)) as source:
        try:
            stream = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # the other of Arrow's two file formats
            table = pa.ipc.open_file(source)
            for index in range(table.num_record_batches):
                yield from _slices(table.get_batch(index))
            return
        for batch in stream:
            yield from _slices(batch)


def _check_values(metadata: Any) -> None:
    """Raises OverflowError where rows are so large that reading one would fill the memory.

    Of whole row groups: pyarrow 25 ends the process when it is asked about a column whose statistics are damaged.
    """
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_rows and group.total_byte_size / group.num_rows > MAX_RECORD:
            raise OverflowError(f"row group {index} has rows of more than 64 MB each")


def _slices(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, ROWS):
        yield batch.slice(start, ROWS)


def _rows(batch: Any, number: int, source: str) -> Iterator[Record | Rejected]:
    """The batch's rows; one by one where they are large, so that few of them are in memory at once."""
    estimate = _estimate_bytes(batch)
    if estimate <= _SMALL:
        size = estimate // max(1, batch.num_rows)
        for at, row in enumerate(batch.to_pylist()):
            yield Record(number + at, row, size)
        return
    for at in range(batch.num_rows):
        row = batch.slice(at, 1).to_pylist()[0]
        size = measure(row)
        if size > MAX_RECORD:
            yield Rejected(source, number + at, Drop.TOO_LARGE, f"{size:,} characters", excerpt(list(row)), size)
        elif is_too_deep(row):
            yield Rejected(source, number + at, Drop.TOO_DEEP, f"{size:,} characters", "", size)
        else:
            yield Record(number + at, row, size)


def _estimate_bytes(batch: Any) -> int:
    """Bytes of the batch's values; a value that a dictionary holds once counts as often as rows can hold it."""
    import pyarrow as pa

    total = 0
    for column in batch.columns:
        repeated = batch.num_rows if _has_dictionary(column.type) else 1
        total += column.nbytes * repeated if not isinstance(column, pa.ExtensionArray) else column.storage.nbytes
    return total


def _has_dictionary(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(index).type) for index in range(kind.num_fields))


def measure(value: Any) -> int:
    """Characters of all texts in a value."""
    total, open_values = 0, [value]
    while open_values:
        item = open_values.pop()
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, dict):
            open_values += item.values()
        elif isinstance(item, list):
            open_values += item
    return total
