"""Files as they are or packed with gzip, told by their first bytes: read as they stream, never unpacked to disk."""

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any

_MAGIC = b"\x1f\x8b"


class Unpacked(io.RawIOBase):
    """A gzip file's content up to its end or to where it is damaged, of which it is then `damage` that tells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = gzip.open(path)  # noqa: SIM115  # closed with this
        self.damage = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read1(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            self.damage = str(error)
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_gzip(path: Path) -> bool:
    """Whether the file begins as one that gzip packed."""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_text(path: Path) -> tuple[IO[str], Unpacked | None]:
    """The file's text, every undecodable byte as a surrogate; and, of a packed file, what tells of damage.

    A byte that is not UTF-8 must cost its record only, so it is carried along and looked for afterwards.
    """
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    if not is_gzip(path):
        return open(path, **options), None  # closed by the caller
    unpacked = Unpacked(path)
    return io.TextIOWrapper(io.BufferedReader(unpacked, 1 << 16), **options), unpacked


def size(path: Path) -> int:
    """Bytes of the file's text; of a packed one what its end says, which is enough for a progress bar."""
    if not is_gzip(path):
        return path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        return int.from_bytes(file.read(4), "little")
