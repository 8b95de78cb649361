"""Near-duplicates are those whose exact Jaccard similarity is high, and the first of them stays."""

import random

import numpy as np
import pytest

from recipe.conversations.cleaning.duplicates import RUN, SIGNATURE, near_duplicates, signature
from recipe.conversations.messages import Message

WORDS = [f"word{number}" for number in range(3000)]


def jaccard(one: list[str], two: list[str]) -> float:
    runs = [{tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)} for words in (one, two)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def signatures(texts: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(signature([Message("user", text)]) for text in texts), SIGNATURE)


def test_found_where_the_exact_similarity_says_so() -> None:
    rng = random.Random(0)
    right = 0
    for changes in [0, 1, 2, 3, 40, 60, 80, 100] * 10:
        one = rng.choices(WORDS, k=300)
        two = list(one)
        for _ in range(changes):
            two[rng.randrange(300)] = rng.choice(WORDS)
        similar = jaccard(one, two) >= 0.8
        right += near_duplicates(signatures([" ".join(one), " ".join(two)]), 0.8).tolist() == [False, similar]
    assert right >= 76  # of 80; an estimate from 128 hashes


def test_the_first_stays_and_a_chain_does_not_grow() -> None:
    """Each text is near the one before it; the last is far from the first, so it stays too."""
    words = WORDS[:200]
    chain = [" ".join(words[: 200 - 20 * step] + [f"new{step}-{n}" for n in range(20 * step)]) for step in range(6)]
    found = near_duplicates(signatures(chain), 0.7)
    assert not found[0]
    assert found[1]
    assert not found[5]


@pytest.mark.parametrize(
    "text", ["今天天气很好，我们一起去公园散步吧。" * 4, "Hello  there, how ARE you today my friend"]
)
def test_case_and_space_do_not_count(text: str) -> None:
    assert near_duplicates(signatures([text, f" {text.lower()}\n"]), 0.95).tolist() == [False, True]


def test_chinese_is_compared_by_characters() -> None:
    one = "".join(chr(0x4E00 + number) for number in range(200))
    assert near_duplicates(signatures([one, one[:-3] + "好好好", one[::-1]]), 0.8).tolist() == [
        False,
        True,
        False,
    ]


def test_short_texts_have_signatures_too() -> None:
    assert near_duplicates(signatures(["", "a", "a b", "b"]), 0.8).tolist() == [False] * 4
