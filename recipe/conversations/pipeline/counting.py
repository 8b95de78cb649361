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
from dataclasses import dataclass, replace
from typing import Any, Literal

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


@dataclass(frozen=True)
class Method:
    """How a tokenizer's texts can be counted."""

    kind: Literal["sentencepiece", "byte-level", "encoding"]
    longest: int  # characters of the longest piece: no text has fewer tokens than its length divided by this
    is_fine: bool  # sentencepiece: whether no piece mixes letters, signs and digits
    prefix: str | None  # what a span that starts a segment is counted with; None: it has to be encoded


class TokenCounter:
    """Counts the tokens of rendered pieces; the numbers are those that `tokens.encode` would give, exactly.

    `method`: what `find_method` says of the encoders, where it is known. A worker gets it with the counter: it takes
    half a second to find.
    """

    def __init__(self, encoders: Encoders, method: Method | None = None) -> None:
        self._method = method = method or find_method(encoders)
        # What is not needed is not sent to workers: a tokenizer takes a quarter of a second to load.
        self._encoders = encoders if method.prefix is None else replace(encoders, leading=encoders.inner)
        self.longest = method.longest
        self._model = encoders.inner.model
        self._stretches = _LETTERS_AND_SIGNS if method.is_fine else _LINES
        self._words = _Words(self._pieces if method.kind == "sentencepiece" else self._whole)
        counts = {"sentencepiece": self._sentencepiece, "byte-level": self._byte_level, "encoding": self._whole}
        self._count = counts[method.kind]
        # An answer that does not fit behind the last one is counted again behind a new opening.
        self._inner = functools.lru_cache(maxsize=2)(self._count)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCounter, (self._encoders, self._method)

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

    def _leading(self, text: str) -> int:
        prefix = self._method.prefix
        return self._whole(text, leading=True) if prefix is None else self._count(prefix + text)

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


def find_method(encoders: Encoders) -> Method:
    """How the texts of a tokenizer can be counted; half a second for LLaMA's vocabulary."""
    inner = encoders.inner
    spec = json.loads(inner.to_str())
    longest = max(map(len, inner.get_vocab()))
    is_plain = all(_step(getattr(encoders.leading, name)) == spec[name] for name in ("normalizer", "pre_tokenizer"))
    prefix = "" if is_plain else None
    if _is_sentencepiece(spec):
        if _step(encoders.leading.normalizer) == {"type": "Sequence", "normalizers": [_PREPEND, _SPACES]}:
            prefix = " "
        return Method("sentencepiece", longest, not _crosses(spec, _MIXES), prefix)
    return Method("byte-level" if _is_byte_level(spec) else "encoding", longest, False, prefix)


def _step(step: Any) -> Any:
    """A normalizer or pre-tokenizer as JSON values."""
    return None if step is None else json.loads(step.__getstate__())


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
