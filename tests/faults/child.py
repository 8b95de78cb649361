"""A stage in a forked process in which something goes wrong at the n-th call that changes a file.

The calls are those of Python (audit events and fsync). What a library writes by itself is torn at the next such call.
"""

import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")
NEEDS_SPACE = ("open", "os.mkdir", "os.symlink", "os.fsync")
SECONDS = 180
HUNG = 98
DEFECT = 99


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: its exit status (negative: a signal), its stderr, and how many calls it made."""

    status: int
    messages: str
    calls: int

    def problem(self) -> str:
        """What is wrong with an end that is no success; empty: it is one sentence and an exit code."""
        if self.status == HUNG:
            return f"it did not end within {SECONDS} s"
        if "Traceback" in self.messages or self.status == DEFECT:
            return f"a traceback: {self.messages[-1500:]}"
        last = self.messages.strip().splitlines()[-1:] or [""]
        sentence = last[0].removeprefix("rank 1: ")
        if self.status in (1, 2, 3) and not (sentence.startswith("error: ") and len(sentence) < 1200):
            return f"exit code {self.status} without a sentence: {self.messages[-500:]}"
        if self.status not in (0, 1, 2, 3, 130) and self.status >= 0:
            return f"the exit code {self.status}"
        return ""


@dataclass
class Fault:
    """What happens at call number `at` (from 1): kill, torn (a power cut), full (no space from then on), a signal."""

    kind: str = ""
    at: int = 0
    signal: int = 0


class Watch:
    """Counts the calls that change a file under `folder`, and lets the fault happen."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.folder, self.fault, self.calls, self.inside = str(folder), fault, 0, False
        self.synced: dict[int, int] = {}  # inode -> bytes that are safe on the disk
        self.started = time.time()
        self._fsync = os.fsync
        os.fsync = self.fsync
        sys.addaudithook(self.hook)

    def fsync(self, handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        self.happened("os.fsync", target(number))
        self._fsync(number)
        stat = os.fstat(number)
        self.synced[stat.st_ino] = stat.st_size

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and isinstance(path, (str, bytes)):
                self.happened(event, os.fsdecode(path))
        elif event in CHANGES and isinstance(arguments[0], (str, bytes, os.PathLike)):
            handle = next((item for item in arguments[1:] if isinstance(item, int) and item > 2), None)
            path = os.fsdecode(arguments[0])
            if event in ("os.remove", "os.rmdir") and handle is not None:
                path = str(Path(target(handle), path))
            self.happened(event, path)

    def happened(self, event: str, path: str) -> None:
        if not str(Path(path).absolute()).startswith(self.folder):
            return
        self.calls += 1
        fault = self.fault
        if fault.kind == "full" and self.calls >= fault.at and event in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.calls != fault.at:
            return
        if fault.kind == "torn":
            self.inside = True
            torn_note(Path(self.folder)).write_text(json.dumps([self.started, self.synced]))
        if fault.kind in ("kill", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "signal":
            os.kill(os.getpid(), fault.signal)


def torn_note(folder: Path) -> Path:
    """Where a killed process leaves what was safe on the disk, for `tear`."""
    return folder.with_name(f"{folder.name}.torn")


def tear(folder: Path) -> None:
    """Half of what was written since the last fsync is lost: a power cut, which has ended all threads before."""
    started, synced = json.loads(torn_note(folder).read_text())
    torn_note(folder).unlink()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        stat = path.stat()
        safe = synced.get(str(stat.st_ino), 0)
        if stat.st_mtime >= started and stat.st_size > safe:
            os.truncate(path, safe + (stat.st_size - safe) // 2)


def target(handle: int) -> str:
    """The path of an open file or folder."""
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def run(main: Callable[[], int], folder: Path, fault: Fault | None = None, setup: Callable[[], None] = int) -> Outcome:
    """Run `main` in `folder` in a forked process, in which `setup` was called before."""
    log, count = folder.with_name(f"{folder.name}.log"), folder.with_name(f"{folder.name}.calls")
    count.unlink(missing_ok=True)
    sys.stdout.flush()
    process = os.fork()
    if not process:
        _in_child(main, folder, fault or Fault(), setup, log, count)
    deadline = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return Outcome(HUNG, log.read_text(errors="replace"), 0)
        time.sleep(0.005)
    if torn_note(folder).is_file():
        tear(folder)
    calls = int(count.read_text() or 0) if count.is_file() else 0
    return Outcome(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), calls)


def _in_child(
    main: Callable[[], int], folder: Path, fault: Fault, setup: Callable[[], None], log: Path, count: Path
) -> None:
    from recipe.core.cli import entry

    code = DEFECT
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False) for number in (1, 2)
        )
        os.chdir(folder)
        counted = os.open(count, os.O_WRONLY | os.O_CREAT)
        setup()  # after it no file may be opened, where it limits their number
        watch = Watch(folder, fault)
        code = entry(main)
        watch.inside = True
        os.write(counted, str(watch.calls).encode())
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
