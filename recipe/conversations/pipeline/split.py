"""Conversations to samples: cut between turns to the token limit, and the hold-out by conversation."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from recipe.conversations import templates
from recipe.conversations.cleaning.roles import fingerprint
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter

# ShareGPT's public dump is cut already: a conversation X lies in it as X_0, X_14, X_28 ...
_DUMP_PART = re.compile(r"([A-Za-z0-9_-]{7})_\d+")
_STOP = re.compile(r"\n|[.!?](?=\s)|[。！？]")  # where an answer can be cut: a line's or a sentence's end


@dataclass(frozen=True)
class Sample:
    """What is trained on at once: as rendered, `tokens` long (all of them) of which `trained` have a loss."""

    messages: tuple[Message, ...]
    tokens: int
    trained: int


@dataclass
class Split:
    """A conversation's samples, and the (question, answer) pairs that were longer than a sample by themselves."""

    samples: list[Sample] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0  # kept, their answers cut


def split_conversation(
    messages: Sequence[Message], counter: TokenCounter, template: str, max_length: int, truncate: bool = False
) -> Split:
    """Samples of at most `max_length` tokens each. A pair that is longer is dropped; or, with `truncate`, kept up to
    the last line or sentence of its answer that fits, if there is one.

    `messages` as `cleaning.in_turn` leaves them. As many pairs as fit go into a sample; a system message goes onto
    every one. A pair is rendered once as the start of a sample or as its continuation, at most once each, and the
    counts are exact since every span is tokenized by itself.
    """
    shape = templates.get(template)
    system, pairs = templates.as_pairs(messages)
    opening = shape.system if system is None else system
    head = [] if system is None else [Message("system", system)]
    out = Split()
    open_sample = False  # whether the last sample takes further pairs
    for question, answer in ((question, answer or "") for question, answer in pairs):
        hopeless = len(question) + len(answer) > max_length * counter.longest  # told without counting
        if open_sample and not hopeless:
            last = out.samples[-1]
            tokens, trained = counter(shape.turn(None, question, answer), shape.end)
            if last.tokens + tokens <= max_length:
                pair = _pair(question, answer)
                out.samples[-1] = Sample((*last.messages, *pair), last.tokens + tokens, last.trained + trained)
                continue
        tokens, trained = (0, 0) if hopeless else counter(shape.turn(opening, question, answer))
        open_sample = not hopeless and tokens <= max_length
        if open_sample:
            out.samples.append(Sample((*head, *_pair(question, answer)), tokens, trained))
        elif truncate and (cut := _cut(shape, opening, question, answer, counter, max_length)):
            out.samples.append(Sample((*head, *_pair(question, cut[0])), cut[1], cut[2]))
            out.truncated += 1
        else:
            out.dropped += 1
    return out


def _pair(question: str, answer: str) -> tuple[Message, Message]:
    return Message("user", question), Message("assistant", answer)


def _cut(
    shape: templates.Template, opening: str, question: str, answer: str, counter: TokenCounter, max_length: int
) -> tuple[str, int, int] | None:
    """(the longest beginning of the answer that fits, its tokens, trained ones); None where no whole sentence does."""
    if len(question) > max_length * counter.longest:
        return None
    stops = [stop.end() for stop in _STOP.finditer(answer[: max_length * counter.longest])]
    best = None
    low, high = 0, len(stops)
    while low < high:
        middle = (low + high) // 2
        beginning = answer[: stops[middle]].rstrip()
        tokens, trained = counter(shape.turn(opening, question, beginning))
        if tokens <= max_length:
            low = middle + 1
            best = (beginning, tokens, trained) if beginning else best
        else:
            high = middle
    return best


def position(conversation: Conversation, seed: int, mark: bytes | None = None) -> float:
    """Where the conversation stands in [0, 1), by its content and `seed` alone: those below the validation share are
    held out. Parts of one ShareGPT conversation stand in the same place. `mark`: its fingerprint, if known already."""
    part = _DUMP_PART.fullmatch(conversation.id)
    family = part[1].encode() if part else mark or fingerprint(conversation.messages)
    return _place(b"%d:" % seed + family)


def drawn(name: str, source: str, seed: int) -> float:
    """Another number in [0, 1), by a conversation's name: those below its source's share are in the sample."""
    return _place(f"{seed}:{source}:{name}".encode("utf-8", "replace"))


def _place(key: bytes) -> float:
    return int.from_bytes(hashlib.sha256(key).digest()[:7], "big") / 256**7
