"""Conversations to samples: cut between turns to the token limit, and the hold-out by conversation."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipe.conversations import templates
from recipe.conversations.cleaning import fingerprint
from recipe.conversations.formats import Conversation, Message
from recipe.conversations.tokens import IGNORED, encode

# ShareGPT's public dump is cut already: a conversation X lies in it as X_0, X_14, X_28 ...
_DUMP_PART = re.compile(r"([A-Za-z0-9_-]{7})_\d+")


@dataclass(frozen=True)
class Sample:
    """What is trained on at once: as rendered, `tokens` long (all of them) of which `trained` have a loss."""

    messages: tuple[Message, ...]
    tokens: int
    trained: int


def split(messages: Sequence[Message], tokenizer: Any, template: str, max_length: int) -> tuple[list[Sample], int]:
    """Samples of at most `max_length` tokens each, and how many (question, answer) pairs were longer by themselves.

    `messages` as `cleaning.in_turn` leaves them. As many pairs as fit go into a sample; a system message goes onto
    every one. A pair is rendered once as the start of a sample or as its continuation, at most once each, and the
    counts are exact since every span is tokenized by itself.
    """
    shape = templates.get(template)
    system, pairs = templates.as_pairs(messages)
    opening = shape.system if system is None else system
    head = [] if system is None else [Message("system", system)]
    samples: list[Sample] = []
    over_long = 0
    open_sample = False  # whether the last sample takes further pairs
    for question, answer in pairs:
        pair = (Message("user", question), Message("assistant", answer or ""))
        if open_sample:
            last = samples[-1]
            tokens, trained = _count(tokenizer, shape.turn(None, question, answer))
            if last.tokens + tokens <= max_length:
                samples[-1] = Sample((*last.messages, *pair), last.tokens + tokens, last.trained + trained)
                continue
        tokens, trained = _count(tokenizer, shape.turn(opening, question, answer))
        open_sample = tokens <= max_length
        if open_sample:
            samples.append(Sample((*head, *pair), tokens, trained))
        else:
            over_long += 1
    return samples, over_long


def _count(tokenizer: Any, pieces: Sequence[templates.Piece]) -> tuple[int, int]:
    input_ids, labels = encode(tokenizer, pieces)
    return len(input_ids), len(labels) - labels.count(IGNORED)


def position(conversation: Conversation, seed: int) -> float:
    """Where the conversation stands in [0, 1), by its content and `seed` alone: those below the validation share are
    held out. Parts of one ShareGPT conversation stand in the same place."""
    part = _DUMP_PART.fullmatch(conversation.id)
    family = part[1].encode() if part else fingerprint(conversation.messages)
    return int.from_bytes(hashlib.sha256(b"%d:" % seed + family).digest()[:7], "big") / 256**7
