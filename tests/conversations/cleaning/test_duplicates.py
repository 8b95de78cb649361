"""Near-duplicates are those whose exact Jaccard similarity is high, and the first of them stays."""

import random
from pathlib import Path

import numpy as np
import pytest

from recipe.conversations.cleaning import duplicates
from recipe.conversations.cleaning.duplicates import BANDS, RUN, SIGNATURE, signature
from recipe.conversations.messages import Message

WORDS = [f"word{number}" for number in range(3000)]


def jaccard(one: list[str], two: list[str]) -> float:
    runs = [{tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)} for words in (one, two)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def signatures(texts: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(signature([Message("user", text)]) for text in texts), SIGNATURE)


@pytest.fixture
def near_duplicates(tmp_path: Path):
    return lambda found, threshold: duplicates.near_duplicates([found], len(found), threshold, tmp_path)


def compared_in_memory(found: np.ndarray, threshold: float) -> np.ndarray:
    """The definition, conversation by conversation, with everything in memory."""
    firsts: list[dict] = [{} for _ in range(BANDS)]
    stays_for = list(range(len(found)))
    for index, one in enumerate(found):
        first = [firsts[band].setdefault(key, index) for band, key in enumerate(one["bands"].tolist())]
        for other in dict.fromkeys(stays_for[number] for number in first):
            equal = float(np.mean(one["low"] == found["low"][other]))
            if other < index and (equal - 1 / 256) / (1 - 1 / 256) >= threshold:
                stays_for[index] = other
                break
    return np.array([stays < index for index, stays in enumerate(stays_for)])


@pytest.mark.parametrize("part", [1, 7, 64, 1 << 18])
def test_files_in_small_parts_give_what_memory_gives(part: int, tmp_path: Path, monkeypatch) -> None:
    """Signatures with many equal keys, among them those of every conversation and of none."""
    monkeypatch.setattr(duplicates, "PART", part)
    rng = np.random.default_rng(0)
    found = np.zeros(300, SIGNATURE)
    texts = rng.integers(0, 60, 300)
    change = rng.random((300, BANDS)) < 0.4
    found["bands"] = np.where(change, rng.integers(0, 2**60, (300, BANDS)), texts[:, None] + 1)
    found["bands"][:, 3] = 5  # one key in all of them
    low = rng.integers(0, 256, (60, 128))[texts]
    found["low"] = np.where(rng.random((300, 128)) < 0.2, 0, low)
    expected = compared_in_memory(found, 0.7)
    assert 50 < expected.sum() < 250
    chunks = np.split(found, [1, 40, 40, 200])
    assert duplicates.near_duplicates(chunks, 300, 0.7, tmp_path).tolist() == expected.tolist()
    assert not any(tmp_path.iterdir()), "a temporary file is left"


def test_no_conversation_is_no_duplicate(tmp_path: Path) -> None:
    assert duplicates.near_duplicates([], 0, 0.8, tmp_path).tolist() == []


def test_found_where_the_exact_similarity_says_so(near_duplicates) -> None:
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


def test_the_first_stays_and_a_chain_does_not_grow(near_duplicates) -> None:
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
def test_case_and_space_do_not_count(text: str, near_duplicates) -> None:
    assert near_duplicates(signatures([text, f" {text.lower()}\n"]), 0.95).tolist() == [False, True]


def test_chinese_is_compared_by_characters(near_duplicates) -> None:
    one = "".join(chr(0x4E00 + number) for number in range(200))
    assert near_duplicates(signatures([one, one[:-3] + "好好好", one[::-1]]), 0.8).tolist() == [
        False,
        True,
        False,
    ]


def test_short_texts_have_signatures_too(near_duplicates) -> None:
    assert near_duplicates(signatures(["", "a", "a b", "b"]), 0.8).tolist() == [False] * 4
