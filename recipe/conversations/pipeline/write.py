"""Finished parts to the training and the validation file: duplicates out, held-out ones aside, sources mixed."""

import itertools
import json
import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from recipe.conversations.cleaning.accounting import Account, Drop
from recipe.conversations.cleaning.duplicates import SKETCH, near_duplicates
from recipe.conversations.pipeline import shards
from recipe.conversations.pipeline.shards import Row
from recipe.conversations.pipeline.split import drawn
from recipe.conversations.readers.json_stream import Rejected

SHOWN_REJECTED = 20
COLUMNS = ("tokens", "trained", "turns", "source")


class Side:
    """The training or the validation file, with its samples' numbers in memory (24 bytes a sample)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens, self.trained = array("I"), array("I")
        self.turns, self.source = array("I"), array("I")
        self.places = array("d")  # where each sample's conversation stands in [0, 1): see splitting.position

    def __enter__(self) -> "Side":
        self._file = open(self.path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, line: bytes, numbers: tuple[int, int, int, int], place: float) -> None:
        """Append a sample: its line but for the beginning with its id, and what `COLUMNS` says."""
        self._file.write(b'{"id": %b, %b' % (json.dumps(name, ensure_ascii=False).encode("utf-8", "replace"), line))
        self._count(numbers, place)

    def move_to(self, other: "Side", place: float) -> None:
        """Give all samples of the conversations that stand at `place` to the other file; for small corpora only."""
        lines, numbers, places = self.path.read_bytes().split(b"\n")[:-1], list(self._numbers()), self.places
        for name in (*COLUMNS, "places"):
            setattr(self, name, getattr(self, name)[:0])
        with open(self.path, "wb") as mine, open(other.path, "ab") as theirs:
            for line, row, stands in zip(lines, numbers, places, strict=True):
                (theirs if stands == place else mine).write(line + b"\n")
                (other if stands == place else self)._count(row, stands)

    def repeat(self, times: Mapping[int, float], seed: int) -> None:
        """Append each source's samples until they are there `times` times; of a last broken time, a random share."""
        originals = list(self._numbers())
        for copy in range(2, math.ceil(max(times.values(), default=1)) + 1):
            with open(self.path, "rb") as lines, open(self.path, "ab") as out:
                for row, place, line in zip(originals, self.places, lines, strict=False):
                    share = times.get(row[-1], 1.0) - (copy - 1)
                    if share <= 0:
                        continue
                    sample = json.loads(line)
                    if share < 1 and drawn(sample["id"], str(copy), seed) >= share:
                        continue
                    sample["id"] = f"{sample['id']}~{copy}"
                    out.write(json.dumps(sample, ensure_ascii=False).encode() + b"\n")
                    self._count(row, place)

    def tokens_of(self, source: int) -> int:
        """All tokens of a source's samples."""
        return sum(itertools.compress(self.tokens, (number == source for number in self.source)))

    def _numbers(self) -> Iterator[tuple[int, int, int, int]]:
        return zip(*(list(getattr(self, name)) for name in COLUMNS), strict=True)

    def _count(self, numbers: tuple[int, int, int, int], place: float) -> None:
        for name, value in zip(COLUMNS, numbers, strict=True):
            getattr(self, name).append(value)
        self.places.append(place)


@dataclass
class Assembly:
    """What assembling found: the account of every source, what was rejected, ids that came twice."""

    sources: list[str] = field(default_factory=list)  # by number, as in `Side.source`
    accounts: defaultdict[str, Account] = field(default_factory=lambda: defaultdict(Account))
    rejected: int = 0
    shown: list[Rejected] = field(default_factory=list)  # the first of them
    repeated_ids: int = 0


def assemble(
    folder: Path, count: int, train: Side, val: Side, val_fraction: float, exact: bool, near: float
) -> Assembly:
    """The `count` parts in `folder`, in order, into the two files.

    Of conversations with the same text (`exact`), or whose similarity is at least `near` (0: off), the first stays.
    What cannot be read goes to rejected.jsonl beside the two files. Memory: about 200 bytes a conversation, with `near`
    500.
    """
    similar = _similar(folder, count, near) if near else itertools.repeat(False)
    out, marks, names = Assembly(), set[bytes](), set[int]()
    with open(train.path.with_name("rejected.jsonl"), "w", encoding="utf-8") as rejects:
        for number in range(count):
            finished = shards.read(folder, number)
            if finished is None:
                raise FileNotFoundError(f"part {number} vanished from {folder}")
            account = out.accounts[finished.source]
            account.add(finished.account)
            if finished.source not in out.sources:
                out.sources.append(finished.source)
            _write_rejected(rejects, finished.rejected)
            out.rejected += len(finished.rejected)
            out.shown += finished.rejected[: SHOWN_REJECTED - len(out.shown)]
            with open(shards.file_of(folder, number, "samples"), "rb") as lines:
                for row, is_similar in zip(finished.rows, similar, strict=False):
                    texts = [lines.read(sample[0]) for sample in row.samples]
                    mark = bytes.fromhex(row.mark)
                    if exact and mark in marks:
                        account.take_back(Drop.DUPLICATE, Drop.IN_DUPLICATE, row.turns, row.language)
                        continue
                    if is_similar:
                        account.take_back(Drop.NEAR_DUPLICATE, Drop.IN_DUPLICATE, row.turns, row.language)
                        continue
                    marks.add(mark)
                    name = _unique(row.id, names)
                    out.repeated_ids += name != row.id
                    side = val if row.place < val_fraction else train
                    _add(side, name, row, texts, len(out.sources) - 1)
    return out


def _add(side: Side, name: str, row: Row, texts: list[bytes], source: int) -> None:
    for index, (text, (_, tokens, trained, turns)) in enumerate(zip(texts, row.samples, strict=True)):
        part = name if len(texts) == 1 else f"{name}#{index}"
        side.add(part, text, (tokens, trained, turns, source), row.place)


def _unique(name: str, names: set[int]) -> str:
    """The id, or one made of it where it was there before: both conversations stay, and each can be found."""
    unique, number = name, 1
    while hash(unique) in names:
        number += 1
        unique = f"{name}+{number}"
    names.add(hash(unique))
    return unique


def _similar(folder: Path, count: int, threshold: float) -> Iterator[bool]:
    sketches = [np.fromfile(shards.file_of(folder, number, "sketches"), SKETCH) for number in range(count)]
    return iter(near_duplicates(np.concatenate(sketches), threshold).tolist())


def _write_rejected(file: IO[str], rejected: list[Rejected]) -> None:
    for item in rejected:
        values = {
            "source": item.source,
            "offset": item.offset,
            "bytes": item.size,
            "reason": item.reason.name.lower(),
            "detail": item.detail,
            "text": item.text,
        }
        file.write(json.dumps(values) + "\n")
