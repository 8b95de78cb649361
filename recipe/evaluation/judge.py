"""Open questions that no rule can judge: the answers of base and tuned model in pairs, for people or a judge model.

The pairs are blind. Each question comes twice, the second time with its answers swapped: a judge model that prefers
what it reads first then cancels itself out (Zheng et al. 2023, arXiv:2306.05685). A person sees the first of the two.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.files import digest
from recipe.core.text import snippet

FILE = Path(__file__).with_name("questions.jsonl")
VOTES = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}  # what the first and the second answer get
FORM = '{"id": "...", "vote": "first" or "second" or "tie"}'


@dataclass(frozen=True)
class Question:
    """One of the questions, with its category."""

    id: str
    category: str
    question: str


@dataclass(frozen=True)
class Pair:
    """The two answers to a question in one order. `id` tells the answers too: a vote cannot count for other ones."""

    id: str
    category: str
    question: str
    first: str
    second: str
    tuned_first: bool

    def blind(self) -> dict[str, str]:
        """What a judge sees."""
        return {key: getattr(self, key) for key in ("id", "category", "question", "first", "second")}


def read_questions(path: Path = FILE) -> list[Question]:
    """The questions of the package: ten in each of eight categories."""
    return [Question(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def pairs(questions: Sequence[Question], base: Sequence[str], tuned: Sequence[str], origin: str) -> Iterator[Pair]:
    """Both orders of every question. `origin`, the digest of the run, and the question draw which is first."""
    for item, from_base, from_tuned in zip(questions, base, tuned, strict=True):
        drawn = int(digest([origin, item.id]), 16) % 2 == 1
        for number, tuned_first in enumerate((drawn, not drawn), start=1):
            first, second = (from_tuned, from_base) if tuned_first else (from_base, from_tuned)
            name = f"{item.id}-{number}-{digest([item.question, first, second])[:8]}"
            yield Pair(name, item.category, item.question, first, second, tuned_first)


def read_votes(path: Path, known: Mapping[str, Pair]) -> list[tuple[Pair, str]]:
    """(pair, vote) of each line of a file of votes.

    Raises RecipeError: no such file, no vote in it, a line that is not a vote, a vote on other answers, or two on one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}: vote on vote.html first and save your votes") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}): save the votes again") from None
    votes: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name, vote = _read_vote(line, f"{path}, line {number}")
            if name not in known:
                raise RecipeError(f"{path}, line {number}: {snippet(name, 40)} is not a pair of this run; vote again")
            if name in votes:
                raise RecipeError(f"{path}, line {number}: a second vote on {name}; keep one of them")
            votes[name] = vote
    if not votes:
        raise RecipeError(f"{path} holds no vote, expected lines of the form {FORM}: vote first")
    return [(known[name], vote) for name, vote in votes.items()]


def _read_vote(line: str, where: str) -> tuple[str, str]:
    try:
        item = json.loads(line)
        name, vote = str(item["id"]), str(item["vote"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{where}: not a vote ({snippet(repr(error))}), expected {FORM}") from None
    if vote not in VOTES:
        raise RecipeError(f"{where}: found the vote {snippet(vote, 40)!r}, expected one of {', '.join(VOTES)}")
    return name, vote


def count(votes: Iterable[tuple[Pair, str]]) -> dict[str, Any]:
    """The share of points that base and tuned got, a tie being half a point each, with intervals over questions.

    `first`: the share of the answers that were shown first; far from a half, the judge judges the place.
    """
    import numpy as np

    from recipe.evaluation.intervals import ratio
    from recipe.evaluation.scoring import plain

    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    first: list[float] = []
    for pair, vote in votes:
        points = VOTES[vote]
        first.append(points[0])
        base, tuned = (points[1], points[0]) if pair.tuned_first else points
        total = totals[pair.id.split("-")[0]]
        for index, value in enumerate((base, tuned, 1.0)):
            total[index] += value
    found = plain(ratio(*np.array(list(totals.values())).T))
    return {"votes": len(first), "questions": len(totals), **found, "first": sum(first) / len(first)}


def summarize(votes: Sequence[tuple[Pair, str]]) -> dict[str, Any]:
    """`count` of all votes, and a row for each category."""
    categories = sorted({pair.category for pair, _ in votes})
    rows = [
        {"name": name, **count([(pair, vote) for pair, vote in votes if pair.category == name])} for name in categories
    ]
    return {**count(votes), "by_category": rows}
