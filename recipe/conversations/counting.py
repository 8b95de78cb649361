"""How many tokens a text has, many times faster than by making them.

A BPE merge joins neighbours only. Where no merge of the vocabulary joins what ends one stretch of text with what begins
the next, both can be encoded apart, and their lengths add up to that of the whole. LLaMA's pieces hold `▁` (a space) at
their start only, and none holds a line break; byte-level tokenizers cut before a space by themselves. So a text falls
into words, nearly all of which were seen before. Where a tokenizer is of neither kind, its own encoding is counted.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from recipe.conversations.templates import Piece, Special
from recipe.conversations.tokens import Encoders

CACHED_WORDS = 200_000  # some 25 MB
CACHED_LENGTH = 48  # characters; longer words seldom come twice

_PREPEND = {"type": "Prepend", "prepend": "▁"}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SENTENCEPIECE = re.compile("▁*[^▁]+|▁+")  # runs of `▁` with what follows them
_STRADDLES = re.compile("[^▁]▁|.\n|\n.", re.S)
# Runs of spaces and line breaks with what follows them; exact where a text has no other white space.
_BYTE_LEVEL = re.compile(r"[ \n]*[^ \n]+|[ \n]+")
_OTHER_SPACE = re.compile(r"[^\S \n]")


class TokenCounter:
    """Counts the tokens of rendered pieces; the numbers are those that `tokens.encode` would give, exactly."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders
        self._words = _Words(lambda word: encoders.ids(word, leading=False))
        self._spaced = _Words(lambda word: encoders.ids(f"▁{word}", leading=False))
        self.longest = max(map(len, encoders.inner.get_vocab()))  # characters of a piece: no text has fewer tokens
        leading, inner = (json.loads(backend.to_str()) for backend in (encoders.leading, encoders.inner))
        self._inner = self._count_of(inner) or (lambda text: len(encoders.ids(text, leading=False)))
        self._leading: Callable[[str], int] = lambda text: len(encoders.ids(text, leading=True))
        if leading == inner:
            self._leading = self._inner
        elif self._count_of(inner) and leading["normalizer"] == {
            "type": "Sequence",
            "normalizers": [_PREPEND, _SPACES],
        }:
            self._leading = lambda text: self._inner(f"▁{text}")

    def __call__(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        """(tokens, trained tokens) of what `render` returns."""
        tokens = trained = 0
        leading = True
        for piece in pieces:
            if isinstance(piece, Special):
                count = int(piece.name == "eos" or self._encoders.bos is not None)
            elif piece.text:
                count = self._leading(piece.text) if leading else self._inner(piece.text)
            else:
                continue
            leading = isinstance(piece, Special)
            tokens += count
            trained += count * piece.trained
        return tokens, trained

    def _count_of(self, spec: dict[str, Any]) -> Callable[[str], int] | None:
        """The count by words, where this kind of tokenizer allows one."""
        if any(not token["special"] for token in spec["added_tokens"]):  # these are looked for across every border
            return None
        if _is_sentencepiece(spec):
            return self._sentencepiece
        return self._byte_level if _is_byte_level(spec) else None

    def _sentencepiece(self, text: str) -> int:
        words, spaced = self._words.__getitem__, self._spaced.__getitem__
        lines = text.replace(" ", "▁").split("\n")
        count = (len(lines) - 1) * words("\n") if lines[1:] else 0
        for line in lines:
            if "▁▁" in line:
                count += sum(map(words, _SENTENCEPIECE.findall(line)))
            elif line:  # splitting at every `▁` is the same, in a third of the time
                first, *rest = line.split("▁")
                count += (words(first) if first else 0) + sum(map(spaced, rest))
        return count

    def _byte_level(self, text: str) -> int:
        if _OTHER_SPACE.search(text):
            return len(self._encoders.ids(text, leading=False))
        return sum(map(self._words.__getitem__, _BYTE_LEVEL.findall(text)))


class _Words(dict[str, int]):
    """Word -> number of its tokens, learnt on demand."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self.encode = encode

    def __missing__(self, word: str) -> int:
        count = len(self.encode(word))
        if len(word) <= CACHED_LENGTH and len(self) < CACHED_WORDS:
            self[word] = count
        return count


def _is_sentencepiece(spec: dict[str, Any]) -> bool:
    """LLaMA's kind: a space becomes `▁`, nothing else is done to a text, and no merge makes a piece over a border."""
    normalizer, model = spec["normalizer"] or {}, spec["model"]
    if normalizer.get("normalizers", [normalizer]) != [_SPACES] or spec["pre_tokenizer"] is not None:
        return False
    if model.get("dropout") or model.get("ignore_merges"):
        return False
    # Without a piece for every byte, unknown characters side by side might become one token.
    has_bytes = model.get("byte_fallback") and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    return bool(has_bytes) and not any(_STRADDLES.search("".join(_pair(merge))) for merge in model["merges"])


def _is_byte_level(spec: dict[str, Any]) -> bool:
    """GPT-2's kind, with or without single digits: its expression begins a new piece at any space after a word."""
    step = spec["pre_tokenizer"] or {}
    *before, last = step.get("pretokenizers") or [step]
    plain = last.get("type") == "ByteLevel" and last.get("use_regex") and not last.get("add_prefix_space")
    if spec["normalizer"] is not None or spec["model"].get("dropout"):
        return False
    return bool(plain) and all(item["type"] == "Digits" for item in before)


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge
