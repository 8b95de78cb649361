"""Rows of Parquet files and of folders that the `datasets` library saved: records, like those of a JSON file.

Arrow's own readers are used and nothing else, since a data set may bring a script and scripts are not run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.conversations.readers.json_stream import Record
from recipe.core.errors import RecipeError

ROWS = 256  # per read


def is_table(path: Path) -> bool:
    """Whether `path` is a Parquet or Arrow file, or a folder."""
    return path.is_dir() or path.suffix in (".parquet", ".arrow")


def records(path: Path) -> Iterator[Record]:
    """Every row; `offset` is its number, since rows have no place in bytes.

    Raises RecipeError: a folder without tables, or a file that is none.
    """
    import pyarrow as pa

    number = 0
    for file in files(path):
        try:
            for batch in _batches(file):
                for row in batch.to_pylist():
                    yield Record(number, row)
                    number += 1
        except pa.ArrowInvalid as error:
            raise RecipeError(
                f"{file} cannot be read ({str(error).splitlines()[0]}): expected Parquet or Arrow; download it again"
            ) from None


def files(path: Path) -> list[Path]:
    """The tables of a folder in the order that `datasets` wrote them; of a DatasetDict all of its parts'."""
    if path.is_file():
        return [path]
    found: list[Path] = []
    for state in sorted(path.rglob("state.json")):
        found += [state.parent / _plain(file["filename"], state) for file in _state(state)]
    found = found or sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.arrow"))
    if not found:
        raise RecipeError(
            f"{path} holds no Parquet file and nothing that `datasets` saved: name raw conversation files"
        )
    return found


def _state(path: Path) -> list[dict[str, str]]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["_data_files"])
    except (ValueError, KeyError, TypeError):
        raise RecipeError(
            f"{path} is not what `datasets` writes: expected _data_files in it; save the set again"
        ) from None


def _plain(name: Any, state: Path) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise RecipeError(f"{state} names {name!r}: expected a file beside it")
    return name


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=ROWS)
        return
    with pa.OSFile(str(file)) as source:
        try:
            stream = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # the other of Arrow's two layouts
            table = pa.ipc.open_file(source)
            for index in range(table.num_record_batches):
                yield from _slices(table.get_batch(index))
            return
        for batch in stream:
            yield from _slices(batch)


def _slices(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, ROWS):
        yield batch.slice(start, ROWS)
