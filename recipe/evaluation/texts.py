"""Plain texts as samples, and the forgetting probe: text that no corpus holds and every machine has.

The probe's text is Python's own help topics (`pydoc_data.topics`): English prose and code of half a megabyte, whose
digest goes into the result. If a model has forgotten what it knew, its bits per byte there rise.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.conversations.templates import Span, Special
from recipe.conversations.tokens import encode
from recipe.core.errors import RecipeError

PASSAGE = 1200  # characters: some 300 tokens, which fit into every context
PROBE_PASSAGES = 24  # some 8,000 tokens: half a minute for a small model on two cores
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Sample:
    """Token ids and labels (-100 where there is no loss) of one thing to score, and what it spells.

    `bytes` counts the UTF-8 bytes of the text under the loss, a denominator that no tokenizer changes.
    """

    input_ids: list[int]
    labels: list[int]
    bytes: int


def passages(text: str, characters: int = PASSAGE) -> list[str]:
    """The text cut between paragraphs into passages of about so many characters; a longer paragraph is cut within."""
    out: list[str] = []
    for paragraph in filter(str.strip, _PARAGRAPH.split(text)):
        if out and len(out[-1]) + len(paragraph) + 2 <= characters:
            out[-1] += f"\n\n{paragraph}"
        else:
            out += [paragraph[at : at + characters] for at in range(0, len(paragraph), characters)]
    return out


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[Sample]:
    """Each text as one sample behind the tokenizer's BOS, a loss on all of it."""
    out = []
    for text in texts:
        ids, labels = encode(tokenizer, [Special("bos", trained=False), Span(text, trained=True)])
        out.append(Sample(ids, labels, len(text.encode("utf-8", "replace"))))
    return out


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


def probe() -> tuple[list[str], str]:
    """(passages of Python's help topics, spread evenly over all of them; the sha256 of the whole text)."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    found = passages(text)
    step = max(1, len(found) // PROBE_PASSAGES)
    return found[::step][:PROBE_PASSAGES], hashlib.sha256(text.encode()).hexdigest()
