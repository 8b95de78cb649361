"""Roles in turn: user and assistant alternate, from a first question to a last answer."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.messages import Message

_SEPARATOR = "\n\n"


def in_turn(messages: Sequence[Message]) -> tuple[list[Message], Counter[Drop]]:
    """At most one system message, then user and assistant in turn, from a first question to a last answer.

    Neighbours of one role are joined. An answer stays only behind its own question: where the question was dropped, a
    join would make it answer another.
    """
    joined, dropped = _join_neighbours(messages)
    kept: list[Message] = []
    asked = False
    for message in joined:
        last = kept[-1].role if kept else ""
        if message.role == "user":
            asked = True
        if message.role not in ("system", "user", "assistant"):
            dropped[Drop.ODD_ROLE] += 1
        elif not message.content.strip():
            dropped[Drop.BLANK] += 1
            if message.role == last == "user":  # its own answer was dropped in between: a later one is not for it
                kept.pop()
                dropped[Drop.UNANSWERED] += 1
        elif message.role == "system" and (asked or last):
            dropped[Drop.MISPLACED_SYSTEM] += 1
        elif message.role == "assistant" and last != "user":
            dropped[Drop.UNASKED if asked else Drop.STARTS_WITH_ASSISTANT] += 1
        elif message.role == "user" and last == "user":
            kept[-1] = message
            dropped[Drop.UNANSWERED] += 1
        else:
            kept.append(message)
    if kept and kept[-1].role == "user":
        kept.pop()
        dropped[Drop.UNANSWERED] += 1
    if [message.role for message in kept] == ["system"]:
        kept.pop()
        dropped[Drop.ORPHAN_SYSTEM] += 1
    return kept, dropped


def _join_neighbours(messages: Sequence[Message]) -> tuple[list[Message], Counter[Drop]]:
    joined: list[_Joined] = []
    dropped: Counter[Drop] = Counter()
    for message in messages:
        last = joined[-1] if joined else None
        if last is None or message.role != last.first.role or message.role not in ("user", "assistant"):
            joined.append(_Joined(message))
        elif not message.content.strip():
            dropped[Drop.BLANK] += 1
        elif last.is_blank():
            joined[-1] = _Joined(message)
            dropped[Drop.BLANK] += 1
        else:
            dropped[Drop.REPEATED if last.equals(message.content) else Drop.JOINED] += 1
            last.add(message)
    return [item.message() for item in joined], dropped


class _Joined:
    """Neighbouring turns of one role. Their texts are joined once, at the end: joining turn by turn takes quadratic
    time. The joined turn is trained only where each of them is."""

    def __init__(self, first: Message) -> None:
        self.first, self.texts, self.size, self.trained = first, [first.content], len(first.content), first.trained

    def is_blank(self) -> bool:
        return len(self.texts) == 1 and not self.texts[0].strip()

    def equals(self, text: str) -> bool:
        return len(text) == self.size and _SEPARATOR.join(self.texts) == text

    def add(self, message: Message) -> None:
        self.trained &= message.trained
        if not self.equals(message.content):
            self.texts.append(message.content)
            self.size += len(_SEPARATOR) + len(message.content)

    def message(self) -> Message:
        if len(self.texts) == 1 and self.trained == self.first.trained:
            return self.first
        return replace(self.first, content=_SEPARATOR.join(self.texts), trained=self.trained)


def fingerprint(messages: Sequence[Message]) -> bytes:
    """Equal for conversations that differ in letter case and white space only."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.role}\0{' '.join(message.content.casefold().split())}\0".encode())
    return digest.digest()
