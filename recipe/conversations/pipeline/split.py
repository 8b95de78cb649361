"""Split conversations into samples at turns, and place each conversation on the training or validation side."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from recipe.conversations import templates
from recipe.conversations.cleaning.roles import fingerprint
from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline.counting import TokenCounter

# ShareGPT's public dump is split already: it holds a conversation X as X_0, X_14, X_28 ...
_DUMP_PART = re.compile(r"([A-Za-z0-9_-]{7})_\d+")
_STOP = re.compile(r"\n|[.!?](?=\s)|[。！？]")  # where an answer can be cut: the end of a line or sentence


@dataclass(frozen=True)
class Sample:
    """One training sample: its messages, how many tokens they render to, and how many of those have a loss."""

    messages: tuple[Message, ...]
    tokens: int
    trained: int


@dataclass
class Split:
    """A conversation's samples, and the number of (question, answer) pairs that exceeded the limit by themselves."""

    samples: list[Sample] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0  # kept, their answers cut
    untrained: int = 0  # pairs in samples without a trained answer, which are dropped


def split_conversation(
    messages: Sequence[Message], counter: TokenCounter, template: str, max_length: int, truncate: bool = False
) -> Split:
    """Samples of at most `max_length` tokens each. A pair that is longer is dropped; or, with `truncate`, kept up to
    the last line or sentence of its answer that fits, if there is one.

    `messages` as `roles.in_turn` returns them. Each sample takes as many pairs as fit and starts with the system
    message. A pair is rendered at most once as the start of a sample and once as its continuation. The counts are
    exact, since every span is tokenized by itself.
    """
    shape = templates.get(template)
    system, pairs = templates.as_pairs(messages)
    opening = shape.system if system is None else system
    head = [] if system is None else [Message("system", system)]
    is_trained = [message.trained for message in messages if message.role == "assistant"]
    out, end = Split(), shape.end
    open_sample = False  # whether the last sample may take another pair
    for index, (question, answer) in enumerate((question, answer or "") for question, answer in pairs):
        too_long = len(question) + len(answer) > max_length * counter.longest  # known without counting
        pair = Message("user", question), Message("assistant", answer, is_trained[index])
        if open_sample and not too_long:
            last = out.samples[-1]
            tokens, trained = counter(shape.turn(None, question, answer), end)
            if last.tokens + tokens <= max_length:
                trained = last.trained + trained * is_trained[index]
                out.samples[-1] = Sample((*last.messages, *pair), last.tokens + tokens, trained)
                continue
        tokens, trained = (0, 0) if too_long else counter(shape.turn(opening, question, answer))
        open_sample = not too_long and tokens <= max_length
        if open_sample:
            out.samples.append(Sample((*head, *pair), tokens, trained * is_trained[index]))
        elif truncate and is_trained[index] and (cut := _cut(shape, opening, question, answer, counter, max_length)):
            out.samples.append(Sample((*head, pair[0], Message("assistant", cut[0])), cut[1], cut[2]))
            out.truncated += 1
        else:
            out.dropped += 1
    return _drop_untrained(out, len(head))


def _drop_untrained(split: Split, head: int) -> Split:
    """Without the samples in which every answer is marked as not trained; `head`: system messages of a sample."""
    for sample in split.samples:
        split.untrained += 0 if sample.trained else (len(sample.messages) - head) // 2
    split.samples = [sample for sample in split.samples if sample.trained]
    return split


def _cut(
    shape: templates.Template, opening: str, question: str, answer: str, counter: TokenCounter, max_length: int
) -> tuple[str, int, int] | None:
    """(longest beginning of the answer that fits, tokens, trained tokens); None where not one sentence fits."""
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


def position(conversation: Conversation, seed: int, content: bytes | None = None) -> float:
    """A hash in [0, 1) of the conversation's content and `seed`: those below the validation fraction validate.

    The parts of one ShareGPT conversation get the same position. `content`: its fingerprint, where it is known.
    """
    part = _DUMP_PART.fullmatch(conversation.id)
    family = part[1].encode() if part else content or fingerprint(conversation.messages)
    return _hash_to_unit(b"%d:" % seed + family)


def draw(name: str, source: str, seed: int) -> float:
    """A hash in [0, 1) of a conversation's id: those below the share of their source are used."""
    return _hash_to_unit(f"{seed}:{source}:{name}".encode("utf-8", "replace"))


def _hash_to_unit(key: bytes) -> float:
    return int.from_bytes(hashlib.sha256(key).digest()[:7], "big") / 256**7
