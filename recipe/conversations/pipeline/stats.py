"""Statistics of a prepared corpus, and samples worth looking at."""

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe.conversations import packing
from recipe.conversations.messages import Message
from recipe.conversations.tokens import prompt_ids

MOST_TURNS = 20  # longer conversations are counted together
BUDGETS = (512, 1024, 2048)  # tokens of a pack
RANDOM, LONGEST, STRANGEST = 10, 3, 5  # samples shown
LETTERS_IN = 500  # characters of a sample in which common letters are counted
COMMON = "etaoinsrhl 的是不了在有我"  # frequent in most languages of the Latin script, and in Chinese


def lengths(values: Iterable[int]) -> dict[str, float]:
    """Smallest, median, mean, 90th percentile and largest, by nearest rank; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "mean": round(sum(ordered) / len(ordered), 1),
        "p90": ordered[(9 * len(ordered) + 9) // 10 - 1],
        "max": ordered[-1],
    }


def histogram(values: Iterable[int], limit: int, bins: int = 16) -> list[tuple[int, int]]:
    """(upper edge, number of values above the edge before and at most this one), up to `limit`."""
    width = -(-limit // bins)
    counts = [0] * bins
    for value in values:
        counts[(value - 1) // width] += 1
    return [(min(limit, width * (index + 1)), count) for index, count in enumerate(counts)]


def turns(values: Iterable[int]) -> list[tuple[int, int]]:
    """(turns, number of samples with that many), from 2 on; the last entry counts longer ones too."""
    counts = Counter(min(value, MOST_TURNS) for value in values)
    return [(number, counts[number]) for number in range(2, max(counts, default=1) + 1) if counts[number]]


def packs(lengths: Sequence[int], budget: int, prefix: int) -> dict[str, float]:
    """How full training packs of at most `budget` tokens get; `prefix` is the common prefix that a pack holds once.

    `over`: samples longer than a pack, left out here; `padded`: how full rows with one sample each would be.
    """
    fitting = [length for length in lengths if length <= budget]
    chosen = packing.pack(fitting, budget, seed=0, prefix=prefix) if fitting else []
    return {
        "packs": len(chosen),
        "fullness": round(packing.fill(chosen, fitting, budget, prefix), 4) if chosen else 0.0,
        "padded": round(sum(fitting) / (budget * len(fitting)), 4) if fitting else 0.0,
        "over": len(lengths) - len(fitting),
    }


def common_prefix(file: Path, template: str, tokenizer: Any) -> int:
    """Tokens that all samples of a train.jsonl begin with, as packing shares them: their system prompt.

    Two unlike questions behind each system prompt show which tokens the question does not change. 0 where sharing
    saves nothing.
    """
    prefix: list[int] | None = None
    for system in _systems(file):
        head = [] if system is None else [Message("system", system)]
        for question in ("a", "1"):
            ids = prompt_ids(tokenizer, template, [*head, Message("user", question)])
            prefix = ids if prefix is None else _common(prefix, ids)
        if not packing.saved_tokens(len(prefix or [])):
            return 0
    return len(prefix or [])


def _systems(file: Path) -> Iterator[str | None]:
    """The system messages of a train.jsonl, each once; None for samples without one."""
    seen = set[int]()
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            has_system = '"messages": [{"role": "system"' in line
            system = json.loads(line)["messages"][0] if has_system else None
            text = system["content"] if system and system["role"] == "system" else None
            if hash(text) not in seen:
                seen.add(hash(text))
                yield text


def _common(one: list[int], two: list[int]) -> list[int]:
    return [left for left, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))]


def notable(file: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Samples worth looking at: drawn at random, the longest in bytes, and those with the fewest common letters."""
    with open(file, "rb") as raw_lines:  # not decoded for their number
        total = sum(1 for _ in raw_lines)
    with open(file, encoding="utf-8") as lines:
        drawn = set(random.Random(seed).sample(range(total), min(RANDOM, total)))  # noqa: S311
        at_random: list[str] = []
        longest: list[tuple[float, int, str]] = []
        strangest: list[tuple[float, int, str]] = []
        for index, line in enumerate(lines):
            if index in drawn:
                at_random.append(line)
            _keep(longest, (len(line), -index, line), LONGEST)
            _keep(strangest, (-_common_letters(line), -index, line), STRANGEST)
    shown = {
        "Drawn at random": at_random,
        "The longest": [line for _, _, line in sorted(longest, reverse=True)],
        "The strangest: fewest of the most common letters": [line for _, _, line in sorted(strangest, reverse=True)],
    }
    return {title: [json.loads(line) for line in lines] for title, lines in shown.items()}


def _common_letters(line: str) -> float:
    text = line[:LETTERS_IN]
    return sum(map(text.count, COMMON)) / len(text)


def _keep(heap: list[Any], item: Any, count: int) -> None:
    (heapq.heappush if len(heap) < count else heapq.heappushpop)(heap, item)
