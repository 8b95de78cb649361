"""Losses of base and tuned model with intervals: in all, by source, by language and by position in the conversation."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.evaluation.intervals import Paired, ratio

LEAST = 5  # conversations: of fewer, an interval says nothing
LAST_POSITION = 4  # answers from here on share a row


@dataclass(frozen=True)
class Scored:
    """A validation sample with the negative log-likelihood (nats) of each of its trained tokens.

    `turns`: for each trained token, which answer of the sample it belongs to, from 1. `bytes`: UTF-8 bytes of the
    trained answers.
    """

    conversation: str
    source: str
    language: str
    bytes: int
    turns: Sequence[int]
    base: Sequence[float]
    tuned: Sequence[float]


def turn_numbers(labels: Sequence[int], ignored: int = -100) -> list[int]:
    """For each trained token of a sample, the number of its run of trained tokens, from 1."""
    out: list[int] = []
    number, inside = 0, False
    for label in labels[1:]:
        number += label != ignored and not inside
        inside = label != ignored
        if inside:
            out.append(number)
    return out


def summarize(scored: Sequence[Scored]) -> dict[str, Any]:
    """The intervals as plain values: `loss` and `bits_per_byte` of all, and rows by source, language and position."""
    by_position = [
        _only(item, position) for item in scored for position in {min(turn, LAST_POSITION) for turn in item.turns}
    ]
    return {
        "conversations": len({item.conversation for item in scored}),
        "loss": _plain(_paired(scored, lambda item: len(item.base))),
        "bits_per_byte": _plain(_paired(scored, lambda item: item.bytes * np.log(2))),
        "by_source": _rows(scored, lambda item: item.source),
        "by_language": _rows(scored, lambda item: item.language or "unknown"),
        "by_position": _rows(by_position, lambda item: _position(item.turns[0])),
    }


def _only(item: Scored, position: int) -> Scored:
    """The sample's tokens of the answers at one position."""
    kept = [at for at, turn in enumerate(item.turns) if min(turn, LAST_POSITION) == position]
    turns, base, tuned = ([values[at] for at in kept] for values in (item.turns, item.base, item.tuned))
    return Scored(item.conversation, item.source, item.language, item.bytes, turns, base, tuned)  # type: ignore[arg-type]


def _position(turn: int) -> str:
    return f"answer {turn}" if turn < LAST_POSITION else f"answer {LAST_POSITION} and later"


def _rows(scored: Iterable[Scored], key: Callable[[Scored], str]) -> list[dict[str, Any]]:
    """A row for each group, most conversations first."""
    groups: defaultdict[str, list[Scored]] = defaultdict(list)
    for item in scored:
        groups[key(item)].append(item)
    rows = []
    for name, items in groups.items():
        count = len({item.conversation for item in items})
        values = _plain(_paired(items, lambda item: len(item.base)), bounds=count >= LEAST)
        rows.append({"name": name, "conversations": count, **values})
    return sorted(rows, key=lambda row: (-row["conversations"], row["name"]))


def _paired(scored: Iterable[Scored], weigh: Callable[[Scored], float]) -> Paired:
    """Nats over weights, drawn by whole conversations: the samples of one are not independent of each other."""
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for item in scored:
        total = totals[item.conversation]
        for index, value in enumerate((sum(item.base), sum(item.tuned), weigh(item))):
            total[index] += value
    base, tuned, weights = np.array(list(totals.values())).T
    return ratio(base, tuned, weights)


def _plain(paired: Paired, bounds: bool = True) -> dict[str, Any]:
    """[value, low, high] of base, tuned and difference; without `bounds` the values alone."""
    return {
        name: [interval.value, interval.low, interval.high] if bounds else [interval.value]
        for name, interval in vars(paired).items()
    }
