"""Files: hashed, and written whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from recipe.core.errors import RecipeError, UsageError
from recipe.core.text import printable

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Hex digest of one file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_size(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else list_files(path)))


def stamp(path: Path) -> list[tuple[int, int]]:
    """Size and time of change of a file, or of every file of a folder: another one where it was written to."""
    files = [path] if path.is_file() else list_files(path)
    return [(stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, files)]


def check_unchanged(stamps: Mapping[Path, Any]) -> None:
    """Raises RecipeError where a file, or a folder, no longer has its `stamp`: what was read of it is then unknown."""
    for path, before in stamps.items():
        if not path.exists() or stamp(path) != before:
            raise RecipeError(
                f"{printable(str(path))} was written to while it was read: wait until it is complete, then run the "
                "same command again"
            )


def existing_folder(path: Path) -> Path:
    """The nearest existing folder at or above `path`, links followed: the disk on which `path` would be written."""
    path = Path(path).resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write `path` whole or not at all: a temporary file beside it, fsync, rename. An error leaves the old file.

    Temporary files of killed processes are removed: each is locked while its process lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    handle, name = _locked_temporary(path)
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            os.replace(name, path)
        _fsync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _locked_temporary(path: Path) -> tuple[int, str]:
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process removed it before it was locked


def remove_stale(path: Path) -> None:
    """Remove the temporary files that killed processes left beside `path`."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.????????"):  # mkstemp appends eight characters
        with contextlib.suppress(OSError), open(stale, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()


def holds_something(path: Path) -> bool:
    """Whether `path` is a file, or a folder that is not empty."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


@contextlib.contextmanager
def atomic_folder(path: Path, replace_any: bool = False) -> Iterator[Path]:
    """Fill a new folder that takes the place of `path` when the block ends; any error, SIGINT included, removes it.

    `path` may be a link: the folder that it points to is replaced. Raises UsageError if `path` holds anything but an
    artefact of the stage whose manifest the block writes (`check_folder`), RecipeError if another process writes it;
    `replace_any`: the caller owns the folder, and holds a lock.
    """
    path = Path(path)
    if not replace_any:
        check_folder(path)
    path = path.resolve() if path.is_symlink() else path
    with contextlib.nullcontext() if replace_any else lock_folder(path):
        yield from _replaced(path, replace_any)


def _replaced(path: Path, replace_any: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    remove(partial)  # from a killed process
    partial.mkdir()
    try:
        yield partial
        if not replace_any:
            check_folder(path, _read_stage(partial))
        for file in list_files(partial):
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if path.exists():
            remove(old)
            os.replace(path, _damaged_name(path) if _is_damaged(path) and not replace_any else old)
        os.replace(partial, path)
        _fsync_folder(path.parent)
        remove(old)
    finally:
        remove(partial)


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed just after it had replaced `path` left beside it."""
    path = Path(path).resolve()
    leftovers = [path.with_name(f".{path.name}.{ending}") for ending in ("partial", "old", "lock")]
    if any(os.path.lexists(place) for place in leftovers):
        with contextlib.suppress(RecipeError, OSError), lock_folder(path):
            remove(leftovers[0])
            remove(leftovers[1])


def lock_folder(path: Path) -> contextlib.AbstractContextManager[None]:
    """`lock_file` beside a folder that is about to be replaced."""
    busy = f"another process writes {path}: wait for it to end, or stop it, then run the same command again"
    return lock_file(path.with_name(f".{path.name}.lock"), busy)


@contextlib.contextmanager
def lock_file(path: Path, busy: str, wait: float = 0) -> Iterator[None]:
    """Hold an exclusive lock on `path` while the block runs. The lock ends with its process, however that ends.

    Raises RecipeError with the sentence `busy` if another process holds it for more than `wait` seconds. POSIX locks
    also work over NFS; a process must not take the same one twice, since closing either file ends both.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, busy, time.monotonic() + wait):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked: see `_locked`


def _locked(path: Path, busy: str, until: float) -> IO[str]:
    while True:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by the caller
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            if time.monotonic() > until:
                raise RecipeError(busy) from None
            time.sleep(0.05)
            continue
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its owner removed it between opening and locking


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on `path` (see `lock_file`). Takes no lock itself."""
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of 64-bit Linux
    try:
        with open(path, "rb") as file:
            kind, *_ = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError:
        return False
    return kind != fcntl.F_UNLCK


def check_folder(path: Path, stage: str | None = None) -> None:
    """Raises UsageError if `stage` must not replace `path`.

    It may replace nothing, an empty folder, or a folder that it made itself (None: that any stage made) and that holds
    only the files of its manifest. A folder with a damaged manifest is not deleted but renamed to NAME.damaged.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, expected a folder to write into; choose another path")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / MANIFEST).is_file():
        raise UsageError(f"{path} is not empty and has no {MANIFEST}: no stage made it; choose another folder")
    made_by = _read_stage(path)
    if made_by and stage and made_by != stage:
        raise UsageError(
            f"{path} was made by the stage {made_by}, so the stage {stage} does not replace it; choose another path"
        )
    if made_by and (unlisted := list_unlisted(path)):
        raise UsageError(
            f"{path} holds {printable(unlisted[0])}, which its {MANIFEST} does not list, so it is not replaced; "
            "move that file away, or choose another path"
        )


def list_unlisted(folder: Path) -> list[str]:
    """Files, links included, that are in `folder` but not in its manifest, relative to it."""
    folder = Path(folder)
    listed = {*_read_json(folder).get("outputs", {}), MANIFEST}
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_symlink() or file.is_file())
    return sorted(name for name in found if name not in listed)


def _read_stage(folder: Path) -> str:
    """The stage that made `folder`, by its manifest; empty if that is absent or damaged."""
    manifest = _read_json(folder)
    known = isinstance(manifest.get("outputs"), dict) and isinstance(manifest.get("stage"), str)
    return manifest["stage"] if known else ""


def _is_damaged(folder: Path) -> bool:
    """Whether `folder` has a manifest that cannot be read."""
    return (folder / MANIFEST).is_file() and not _read_stage(folder)


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _damaged_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Free bytes on the disk on which `path` would be written."""
    return shutil.disk_usage(existing_folder(path)).free


def list_files(folder: Path) -> list[Path]:
    """All files under `folder`, links excluded, sorted."""
    return sorted(file for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
