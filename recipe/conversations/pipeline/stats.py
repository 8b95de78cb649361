"""Statistics of a prepared corpus, and samples worth a look."""

import heapq
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_TURNS = 20  # longer conversations share the last bar
BUDGETS = (512, 1024, 2048)  # tokens of a pack
RANDOM, LONGEST, STRANGEST = 10, 3, 5  # samples shown
LOOKED_AT = 500  # characters of a sample
COMMON = "etaoinsrhl 的是不了在有我"  # frequent in most languages of the Latin script, and in Chinese


def lengths(values: Iterable[int]) -> dict[str, float]:
    """Smallest, median, mean, 90th percentile and largest, by nearest rank."""
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "mean": round(sum(ordered) / len(ordered), 1),
        "p90": ordered[(9 * len(ordered) + 9) // 10 - 1],
        "max": ordered[-1],
    }


def histogram(values: Iterable[int], limit: int, bins: int = 16) -> list[tuple[int, int]]:
    """(upper edge, how many values are at most that and above the edge before) up to `limit`."""
    width = -(-limit // bins)
    counts = [0] * bins
    for value in values:
        counts[(value - 1) // width] += 1
    return [(min(limit, width * (index + 1)), count) for index, count in enumerate(counts)]


def turns(values: Iterable[int]) -> list[tuple[int, int]]:
    """(turns, how many samples have so many), from 2 on; the last one counts longer ones too."""
    counts = Counter(min(value, MOST_TURNS) for value in values)
    return [(number, counts[number]) for number in range(2, max(counts, default=1) + 1) if counts[number]]


def packs(values: Iterable[int], budget: int) -> dict[str, float]:
    """How full packs of at most `budget` tokens get, conversations side by side, by best fit, longest first.

    `over`: samples that are longer than a pack and left out here; `padded`: how full rows are with one sample each.
    """
    fitting = sorted((value for value in values if value <= budget), reverse=True)
    over = sum(1 for value in values if value > budget)
    rooms = Counter[int]()  # tokens left -> packs
    mask = 0  # bit r is set where a pack has room for r more
    for value in fitting:
        room = budget
        if above := mask >> value:
            room = value + (above & -above).bit_length() - 1
            rooms[room] -= 1
            mask ^= 0 if rooms[room] else 1 << room
        rooms[room - value] += 1
        mask |= 1 << (room - value)
    count = rooms.total()
    full = sum(fitting) / budget
    return {
        "packs": count,
        "fullness": round(full / count, 4) if count else 0.0,
        "padded": round(full / len(fitting), 4) if fitting else 0.0,
        "over": over,
    }


def notable(file: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Samples worth a look, by what they are: drawn at random, the longest in bytes, and those with the fewest letters
    for their length."""
    with open(file, encoding="utf-8") as lines:
        total = sum(1 for _ in lines)
        drawn = set(random.Random(seed).sample(range(total), min(RANDOM, total)))  # noqa: S311
        lines.seek(0)
        at_random: list[str] = []
        longest: list[tuple[float, int, str]] = []
        strangest: list[tuple[float, int, str]] = []
        for index, line in enumerate(lines):
            if index in drawn:
                at_random.append(line)
            _keep(longest, (len(line), -index, line), LONGEST)
            _keep(strangest, (-_common(line), -index, line), STRANGEST)
    shown = {
        "Drawn at random": at_random,
        "The longest": [line for _, _, line in sorted(longest, reverse=True)],
        "The strangest: fewest of the most common letters": [line for _, _, line in sorted(strangest, reverse=True)],
    }
    return {title: [json.loads(line) for line in lines] for title, lines in shown.items()}


def _common(line: str) -> float:
    text = line[:LOOKED_AT]
    return sum(map(text.count, COMMON)) / len(text)


def _keep(heap: list[Any], item: Any, count: int) -> None:
    (heapq.heappush if len(heap) < count else heapq.heappushpop)(heap, item)
