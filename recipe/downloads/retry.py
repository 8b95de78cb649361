"""Patience with networks: what is worth another try, how long to wait, and what to say of the rest."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from recipe.core.errors import RecipeError
from recipe.core.files import free_bytes
from recipe.core.text import say, snippet

Result = TypeVar("Result")
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses of a server that may answer otherwise later
LONGEST_WAIT = 120.0  # seconds: a server may ask for more, a person who waits does not know why


@dataclass(frozen=True)
class Patience:
    """`timeout`: seconds without a byte; `waits`: seconds before each retry, from the first again after progress."""

    timeout: float = 30.0
    waits: tuple[float, ...] = (1, 2, 4, 8, 16, 32)


PATIENT = Patience()


class Passing(Exception):
    """A failure worth another try; `wait`: the seconds that the server asked for; `progress`: bytes had arrived."""

    def __init__(self, reason: str, wait: float = 0.0, progress: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.progress = wait, progress


def retry(work: Callable[[], Result], what: str, patience: Patience = PATIENT) -> Result:
    """`work()`, tried again with back-off while it raises Passing. Raises RecipeError when all tries are used."""
    left = list(patience.waits)
    while True:
        try:
            return work()
        except Passing as failure:
            if failure.progress:
                left = list(patience.waits)
            if not left:
                raise RecipeError(
                    f"{what} stopped after {len(patience.waits) + 1} tries ({snippet(failure)}): check the network "
                    "and run the same command again, it resumes"
                ) from None
            wait = min(max(left.pop(0), failure.wait), LONGEST_WAIT)
            say(f"{what}: {snippet(failure)}; trying again in {wait:g} s")
            time.sleep(wait)


def check_disk(path: Path, needed: int, what: str) -> None:
    """Raises RecipeError if the disk of `path` has fewer than `needed` free bytes."""
    free = free_bytes(path)
    if free < needed:
        raise RecipeError(
            f"{what} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free at {path}: free some, or choose "
            "another --output"
        )
