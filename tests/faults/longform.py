"""The long forms: trials in a fixed order, counted in results/NAME.json, from which an interrupted one goes on."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from recipe.core.files import atomic_file, digest
from recipe.core.versions import code_sha256, hardware

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
Trial = TypeVar("Trial")
WRONG = "wrong"


def carry_on(
    file: Path, trials: Sequence[Trial], order: object, attempt: Callable[[Trial], tuple[str, str]]
) -> dict[str, Any]:
    """The counts after all `trials`; those that `file` holds already, of the same code and order, are not made again.

    order: a JSON value from which the trials follow, however many there are; attempt: how a trial ended, and what is
    wrong (empty: nothing).
    """
    kind = digest([code_sha256(), order])
    found = read(file, kind)
    for trial in trials[found["tried"] :]:
        start = time.monotonic()
        end, problem = attempt(trial)
        if problem:
            end, found["problems"][str(trial)] = WRONG, problem
        found["ends"][end] = found["ends"].get(end, 0) + 1
        found["tried"] += 1
        found["right"] = found["tried"] - found["ends"].get(WRONG, 0)
        found["seconds"] = round(found["seconds"] + time.monotonic() - start, 1)
        write(file, found)
    return found


def read(file: Path, kind: str) -> dict[str, Any]:
    """The counts so far: those of `file` if they are of this kind, else none."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if found.get("kind") == kind:
        return found
    return {"kind": kind, "tried": 0, "right": 0, "seconds": 0.0, "ends": {}, "problems": {}}


def write(file: Path, found: dict[str, Any]) -> None:
    """Write counts, with the commit and the CPU."""
    with atomic_file(file) as out:
        json.dump({**found, "commit": commit(), "cpu": hardware()["cpu"]}, out, indent=1, sort_keys=True)
        out.write("\n")


def commit() -> str:
    """The commit of this checkout, with -modified behind it if files differ from it; empty where git knows none."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "recipe", "docker", "Makefile")
    return git("rev-parse", "--short=7", "HEAD") + ("-modified" if changed else "")
