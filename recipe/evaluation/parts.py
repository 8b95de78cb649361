"""Finished parts of an evaluation, kept in a file of the run: an interrupted evaluation resumes where it stopped.

Each line is one part: the losses of a pack, or a batch of answers. Its key is a digest of what was asked, so that a
part is found again as long as the question is the same, whatever else was added to the evaluation since.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from recipe.core.files import digest
from recipe.core.text import say


class Parts:
    """The parts of one run on disk; only their places are held in memory.

    `origin` is a digest of all that every part follows from (model, code, environment): parts of another origin are
    thrown away. A line that was cut off, or altered, does not match its own digest and is computed again.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self.path, self.reused, self.computed = path, 0, 0
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by `__exit__`
        self._places: dict[str, int] = {}
        try:
            self._read(origin)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def get(self, question: Any, compute: Callable[[], Any]) -> Any:
        """The kept part for `question`, a JSON value; else what `compute` returns, also JSON, which is then kept."""
        key = digest(question)
        if key in self._places:
            self._file.seek(self._places[key])
            self.reused += 1
            return json.loads(self._file.readline())["value"]
        value = compute()
        self._append({"key": key, "value": value, "sha256": digest([key, value])})
        self.computed += 1
        return value

    def _read(self, origin: str) -> None:
        """Find the whole lines; cut off the rest, or everything if the parts are of another origin."""
        self._file.seek(0)
        header = self._file.readline()
        if _parse(header).get("origin") != origin:
            self._file.truncate(0)
            self._append({"origin": origin})
            return
        end = place = self._file.tell()
        while (line := self._file.readline()).endswith(b"\n"):
            part = _parse(line)
            key = part.get("key")
            if isinstance(key, str) and part.get("sha256") == digest([key, part.get("value")]):
                self._places[key] = place
            end = place = self._file.tell()
        self._file.truncate(end)
        if self._places:
            say(f"{len(self._places)} finished parts of an earlier evaluation are in {self.path}")

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
