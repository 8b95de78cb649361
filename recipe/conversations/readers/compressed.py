"""Files as they are, or compressed with gzip or Zstandard (told by their first bytes), decompressed as they stream."""

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
SUFFIXES = (".gz", ".zst", ".zstd")


class Decompressed(io.RawIOBase):
    """The content of a compressed file, up to its end or to damage, which `damage` then describes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        is_zstd = _magic(path).startswith(_ZSTD)
        self._file = _open_zstd(path) if is_zstd else gzip.open(path)  # noqa: SIM115  # closed with this
        self._read = self._file.read if is_zstd else self._file.read1
        self._most = 4096 if is_zstd else 1 << 20  # pyarrow loses what it had read where it meets damage
        self.damage = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(min(len(buffer), self._most))
        except (EOFError, OSError, ValueError, zlib.error) as error:
            self.damage = str(error)
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


def _magic(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def is_compressed(path: Path) -> bool:
    """Whether the file begins as gzip and Zstandard files do."""
    return _magic(path).startswith((_GZIP, _ZSTD))


def open_text(path: Path, newline: str | None = "") -> tuple[IO[str], Decompressed | None]:
    """(the file's text, the decompressing stream of a compressed file); the caller closes it.

    A byte that is not UTF-8 becomes a surrogate: it must cost its record only, so it is looked for later.
    """
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": newline}
    if not is_compressed(path):
        return open(path, **options), None
    stream = Decompressed(path)
    return io.TextIOWrapper(io.BufferedReader(stream, 1 << 16), **options), stream


def size(path: Path) -> int:
    """Bytes of the file's text, for a progress bar; of a compressed file what gzip's trailer says, or its own size."""
    whole = path.stat().st_size
    if not _magic(path).startswith(_GZIP):
        return whole
    with open(path, "rb") as file:
        file.seek(max(0, whole - 4))
        return int.from_bytes(file.read(4), "little")
