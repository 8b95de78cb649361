"""Roles in turn: user and assistant alternate, from a first question to a last answer."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.messages import Message


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
    joined: list[Message] = []
    dropped: Counter[Drop] = Counter()
    for message in messages:
        last = joined[-1] if joined else None
        if last is None or message.role != last.role or message.role not in ("user", "assistant"):
            joined.append(message)
        elif not message.content.strip():
            dropped[Drop.BLANK] += 1
        elif not last.content.strip():
            joined[-1] = message
            dropped[Drop.BLANK] += 1
        elif message.content == last.content:
            dropped[Drop.REPEATED] += 1
        else:
            joined[-1] = replace(last, content=f"{last.content}\n\n{message.content}")
            dropped[Drop.JOINED] += 1
    return joined, dropped


def fingerprint(messages: Sequence[Message]) -> bytes:
    """Equal for conversations that differ in letter case and white space only."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.role}\0{' '.join(message.content.casefold().split())}\0".encode())
    return digest.digest()
