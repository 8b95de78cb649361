"""Plain texts and files of conversations as samples, and the forgetting probe: text that no corpus holds.

The probe's text is Python's own help topics (`pydoc_data.topics`), which every machine has: English prose and code of
half a megabyte, whose digest goes into the result. If a model has forgotten what it knew, its bits per byte there rise.
"""

import bisect
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recipe.conversations.cleaning.roles import in_turn
from recipe.conversations.formats import detect
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.templates import Span, Special, render
from recipe.conversations.tokens import IGNORED, encode
from recipe.core.errors import RecipeError
from recipe.core.text import say

PASSAGE = 1200  # characters: some 300 tokens, which fit into every context
PROBE_PASSAGES = 24  # some 8,000 tokens: half a minute for a small model on two cores
CONVERSATIONS = {".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv"}  # a folder is one, too
_PARAGRAPH = re.compile(r"\n\s*\n")
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sample:
    """Token ids and labels (-100 where there is no loss), int32 [tokens], of one thing to score, and what it spells.

    `bytes` counts the UTF-8 bytes of the text under the loss, a denominator that no tokenizer changes.
    """

    input_ids: Ids
    labels: Ids
    bytes: int

    @classmethod
    def of(cls, ids: Sequence[int], labels: Sequence[int], text: str) -> "Sample":
        """The sample of these lists; `text` is what is under the loss."""
        return cls(np.array(ids, np.int32), np.array(labels, np.int32), len(text.encode("utf-8", "replace")))


def passages(text: str, characters: int = PASSAGE) -> list[str]:
    """The text cut between paragraphs into passages of about so many characters; a longer paragraph is cut within."""
    out: list[str] = []
    for paragraph in filter(str.strip, _PARAGRAPH.split(text)):
        if out and len(out[-1]) + len(paragraph) + 2 <= characters:
            out[-1] += f"\n\n{paragraph}"
        else:
            out += [paragraph[at : at + characters] for at in range(0, len(paragraph), characters)]
    return out


def encode_texts(tokenizer: Any, texts: Iterable[str], limit: int) -> list[Sample]:
    """Each text as one sample behind the tokenizer's BOS, a loss on all of it; in halves where it exceeds `limit`
    tokens."""
    return [sample for text in texts for sample in _encode_text(tokenizer, text, limit)]


def _encode_text(tokenizer: Any, text: str, limit: int) -> Iterator[Sample]:
    ids, labels = encode(tokenizer, [Special("bos", trained=False), Span(text, trained=True)])
    if len(ids) > limit and len(text) > 1:
        for half in (text[: len(text) // 2], text[len(text) // 2 :]):
            yield from _encode_text(tokenizer, half, limit)
    elif any(label != IGNORED for label in labels[1:]):
        yield Sample.of(ids, labels, text)


def is_conversations(path: Path) -> bool:
    """Whether the file is read as conversations, by its name; any other file is text."""
    return path.is_dir() or any(suffix.lower() in CONVERSATIONS for suffix in path.suffixes)


def encode_path(path: Path, tokenizer: Any, template: str, limit: int) -> list[Sample]:
    """The samples of a text, or of conversations in any known format, in which only the answers are scored.

    Raises RecipeError where the file is missing, empty, in an unknown form, or holds nothing to score.
    """
    if not is_conversations(path):
        samples = encode_texts(tokenizer, read_text(path), limit)
    else:
        samples = list(encode_conversations(path, tokenizer, template, limit))
    if not samples:
        raise RecipeError(f"{path} holds nothing that can be scored: pass a file with text, or with answered questions")
    return samples


def read_text(path: Path) -> list[str]:
    """The passages of a text file. Raises RecipeError where it is missing, empty or not UTF-8."""
    try:
        found = passages(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}: pass a text file to evaluate on") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}): convert it first") from None
    if not found:
        raise RecipeError(f"{path} is empty: pass a file with some text")
    return found


def encode_conversations(path: Path, tokenizer: Any, template: str, limit: int) -> Iterator[Sample]:
    """Each conversation as one sample, with a loss on the answers; what exceeds `limit` tokens is left out.

    Records that are no conversation, and conversations whose first answer begins beyond the limit, are counted.
    """
    cut = skipped = 0
    for item in detect.read(path):
        messages = in_turn(item.messages)[0] if isinstance(item, Conversation) else []
        kept = _shorten(messages, tokenizer, template, limit)
        cut += len(kept) < len(messages) and bool(kept)
        skipped += not kept
        if kept:
            ids, labels = encode(tokenizer, render(template, kept))
            yield Sample.of(ids, labels, "".join(turn.content for turn in kept if _is_scored(turn)))
    if cut or skipped:
        say(f"{path}: {cut} conversations were cut to {limit} tokens, {skipped} records had nothing to score")


def _shorten(messages: list[Message], tokenizer: Any, template: str, limit: int) -> list[Message]:
    """The conversation up to the last answer that fits into `limit` tokens; empty if there is none to score."""
    ends = [at + 1 for at, message in enumerate(messages) if message.role == "assistant"]
    fitting = bisect.bisect_right(
        ends, limit, key=lambda end: len(encode(tokenizer, render(template, messages[:end]))[0])
    )
    kept = messages[: ends[fitting - 1]] if fitting else []
    return kept if any(map(_is_scored, kept)) else []


def _is_scored(message: Message) -> bool:
    return message.role == "assistant" and message.trained


def probe() -> tuple[list[str], str]:
    """(passages of Python's help topics, spread evenly over all of them; the sha256 of the whole text)."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    found = passages(text)
    step = max(1, len(found) // PROBE_PASSAGES)
    return found[::step][:PROBE_PASSAGES], hashlib.sha256(text.encode()).hexdigest()
