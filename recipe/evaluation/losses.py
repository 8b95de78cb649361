"""Losses of base and tuned model with intervals: in all, by source, by language and by position in the conversation."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recipe.conversations.cleaning.filters import language
from recipe.conversations.messages import Message
from recipe.evaluation.intervals import Paired, ratio

Nats = npt.NDArray[np.float32]

LEAST = 5  # conversations: of fewer, an interval says nothing
LAST_POSITION = 4  # answers from here on share a row


@dataclass(frozen=True)
class Scored:
    """A validation sample with the negative log-likelihood (nats) of each of its trained tokens.

    `turns`: for each trained token, which answer of the conversation it belongs to, from 1. `bytes`: UTF-8 bytes of
    the trained answers.
    """

    conversation: str
    source: str
    language: str
    bytes: int
    turns: Sequence[int]
    base: Nats
    tuned: Nats


def read_scored(
    file: Path, labels: Iterable[Sequence[int]], base: Iterable[Nats], tuned: Iterable[Nats]
) -> list[Scored]:
    """Each sample of val.jsonl, in order, with its losses and with what they are grouped by."""
    out = []
    answered: Counter[str] = Counter()  # answers in the earlier samples of a conversation that was split
    with open(file, encoding="utf-8") as lines:
        for line, row, from_base, from_tuned in zip(lines, labels, base, tuned, strict=True):
            record = json.loads(line)
            messages = [Message(**message) for message in record["messages"]]
            answers = [message.content for message in messages if message.role == "assistant" and message.trained]
            name, source = str(record["id"]).partition("#")[0], str(record.get("source", ""))
            turns = [answered[name] + number for number in turn_numbers(row)]
            answered[name] += sum(message.role == "assistant" for message in messages)
            size = sum(len(answer.encode()) for answer in answers)
            out.append(Scored(name, source, language(messages), size, turns, from_base, from_tuned))
    return out


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
    kept = np.minimum(item.turns, LAST_POSITION) == position
    turns = np.array(item.turns)[kept].tolist()
    return Scored(item.conversation, item.source, item.language, item.bytes, turns, item.base[kept], item.tuned[kept])


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
    base, tuned, weights = np.array([totals for _, totals in _totals(scored, weigh)]).T
    return ratio(base, tuned, weights)


def _totals(scored: Iterable[Scored], weigh: Callable[[Scored], float]) -> Iterator[tuple[str, list[float]]]:
    """(conversation, [nats of base, nats of tuned, weight]) of every conversation."""
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for item in scored:
        total = totals[item.conversation]
        nats = (float(losses.sum(dtype=np.float64)) for losses in (item.base, item.tuned))
        for index, value in enumerate((*nats, weigh(item))):
            total[index] += value
    yield from totals.items()


def lines(scored: Sequence[Scored]) -> Iterator[str]:
    """A JSON line for each conversation: id, trained tokens, nats of base and tuned. Two runs are compared by them."""
    for name, (base, tuned, tokens) in _totals(scored, lambda item: len(item.base)):
        row = {"id": name, "tokens": int(tokens), "base": base, "tuned": tuned}
        yield json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def _plain(paired: Paired, bounds: bool = True) -> dict[str, Any]:
    """[value, low, high] of base, tuned and difference; without `bounds` the values alone."""
    return {
        name: [interval.value, interval.low, interval.high] if bounds else [interval.value]
        for name, interval in vars(paired).items()
    }
