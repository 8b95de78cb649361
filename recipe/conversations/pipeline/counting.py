"""How many tokens a text has, many times faster than by making them.

A BPE merge joins neighbours only. Where no merge of the vocabulary joins what ends one stretch of text with what begins
the next, both can be encoded apart, and their lengths add up to that of the whole. LLaMA's pieces hold `▁` (a space) at
their start only, none holds a line break, and none mixes letters with signs or digits; byte-level tokenizers cut there
by themselves. So a text falls into words and signs, nearly all of which were seen before. Where a tokenizer is of
neither kind, its own encoding is counted.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from recipe.conversations.templates import Piece, Special
from recipe.conversations.tokens import Encoders

CACHED_WORDS = 300_000  # some 35 MB
CACHED_LENGTH = 48  # characters; longer words seldom come twice

_PREPEND = {"type": "Prepend", "prepend": "▁"}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SIGN = r"!-/:-@\[-`{-~"  # ASCII's, for a character class

# Every pattern matches the whole of a text, stretch by stretch; possessively, or it would be slow.
# LLaMA's: spaces with what follows them, line breaks.
_LINES = re.compile(r" *+[^ \n]++|\n| ++")
_STRADDLES = re.compile("[^▁]▁|.\n|\n.", re.S)  # what a merge then must not make
# Finer where a vocabulary keeps letters from signs and digits from everything: runs of ASCII letters, runs of ASCII
# signs (and tabs), single digits; what touches other characters stays in one stretch with them.
_LETTERS_AND_SIGNS = re.compile(rf" *+(?:[A-Za-z]++(?![^ -~\t\n])|[{_SIGN}\t]++(?![^ -~\n])|[0-9]|[^ \n0-9]++)|\n| ++")
_MIXES = re.compile(rf"[A-Za-z][{_SIGN}\t]|[{_SIGN}\t][A-Za-z]|[0-9].|.[0-9]", re.S)
# Byte-level's: GPT-2's expression begins anew at a space behind a word, and between letters and signs but for 've and
# its like. Exact where a text has no other white space.
_BYTE_LEVEL = re.compile(
    rf"[ \n]*+(?:[A-Za-z]++(?=[{_SIGN} \n]|\Z)|[{_SIGN}]++(?=[ \n]|\Z|(?<!')[A-Za-z])|[^ \n]++)|[ \n]++"
)
_OTHER_SPACE = re.compile(r"[^\S \n]")


class TokenCounter:
    """Counts the tokens of rendered pieces; the numbers are those that `tokens.encode` would give, exactly."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders
        self.longest = max(map(len, encoders.inner.get_vocab()))  # characters of a piece: no text has fewer tokens
        leading, inner = (json.loads(backend.to_str()) for backend in (encoders.leading, encoders.inner))
        self._inner: Callable[[str], int] = self._whole
        self._leading: Callable[[str], int] = lambda text: self._whole(text, leading=True)
        if _is_sentencepiece(inner):
            self._stretches = _LINES if _crosses(inner, _MIXES) else _LETTERS_AND_SIGNS
            self._words = _Words(self._pieces)
            self._model = encoders.inner.model
            self._inner = self._sentencepiece
            if leading["normalizer"] == {"type": "Sequence", "normalizers": [_PREPEND, _SPACES]}:
                self._leading = lambda text: self._sentencepiece(f" {text}")
        elif _is_byte_level(inner):
            self._words = _Words(self._whole)
            self._inner = self._byte_level
        if leading == inner:
            self._leading = self._inner
        # An answer that does not fit behind the last one is counted again behind a new opening.
        self._inner = functools.lru_cache(maxsize=2)(self._inner)

    def __call__(self, pieces: Sequence[Piece], before: Piece | None = None) -> tuple[int, int]:
        """(tokens, trained tokens) of pieces of what `render` returns; `before`: the piece before them, if any."""
        tokens = trained = 0
        for piece, leading in self._encoders.segments(pieces, before):
            if isinstance(piece, Special):
                count = len(self._encoders.special_ids(piece.name))
            elif piece.text:
                count = self._leading(piece.text) if leading else self._inner(piece.text)
            else:
                continue
            tokens += count
            trained += count * piece.trained
        return tokens, trained

    def _whole(self, text: str, leading: bool = False) -> int:
        backend = self._encoders.leading if leading else self._encoders.inner
        return len(backend.encode_batch_fast([text], add_special_tokens=False)[0]) if text else 0

    def _pieces(self, word: str) -> int:
        """Of sentencepiece's kind, whose normalizer puts `▁` for a space and does nothing else: the model alone."""
        return len(self._model.tokenize(word.replace(" ", "▁")))

    def _sentencepiece(self, text: str) -> int:
        stretches = self._stretches.findall(text.replace("▁", " "))  # which are one to it
        return sum(map(self._words.__getitem__, stretches))

    def _byte_level(self, text: str) -> int:
        if _OTHER_SPACE.search(text):
            return self._whole(text)
        return sum(map(self._words.__getitem__, _BYTE_LEVEL.findall(text)))


class _Words(dict[str, int]):
    """Word -> number of its tokens, learnt on demand."""

    def __init__(self, count: Callable[[str], int]) -> None:
        super().__init__()
        self._count = count

    def __missing__(self, word: str) -> int:
        count = self._count(word)
        if len(word) <= CACHED_LENGTH and len(self) < CACHED_WORDS:
            self[word] = count
        return count


def _is_sentencepiece(spec: dict[str, Any]) -> bool:
    """LLaMA's kind: a space becomes `▁`, nothing else is done to a text, and no merge makes a piece over a border."""
    normalizer, model = spec["normalizer"] or {}, spec["model"]
    if (
        _looks_for_tokens(spec)
        or normalizer.get("normalizers", [normalizer]) != [_SPACES]
        or spec["pre_tokenizer"] is not None
    ):
        return False
    if model.get("dropout") or model.get("ignore_merges"):
        return False
    # Without a piece for every byte, unknown characters side by side might become one token.
    has_bytes = model.get("byte_fallback") and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    return bool(has_bytes) and not _crosses(spec, _STRADDLES)


def _is_byte_level(spec: dict[str, Any]) -> bool:
    """GPT-2's kind, with or without single digits: its expression begins a new piece at any space after a word."""
    step = spec["pre_tokenizer"] or {}
    *before, last = step.get("pretokenizers") or [step]
    plain = last.get("type") == "ByteLevel" and last.get("use_regex") and not last.get("add_prefix_space")
    if _looks_for_tokens(spec) or spec["normalizer"] is not None or spec["model"].get("dropout"):
        return False
    return bool(plain) and all(item["type"] == "Digits" for item in before)


def _crosses(spec: dict[str, Any], border: re.Pattern[str]) -> bool:
    """Whether a merge makes a piece that holds the border."""
    merges = spec["model"]["merges"]
    return any(border.search("".join(merge.split(" ") if isinstance(merge, str) else merge)) for merge in merges)


def _looks_for_tokens(spec: dict[str, Any]) -> bool:
    """Whether a text is searched for added tokens before anything else, across every border."""
    return any(not token["special"] for token in spec["added_tokens"])
