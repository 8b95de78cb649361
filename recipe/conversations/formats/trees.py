"""Open Assistant's message trees: every message has ranked replies, so one record holds many conversations."""

from collections.abc import Iterator
from typing import Any

from recipe.conversations.formats.records import Layout, Record
from recipe.conversations.messages import Dialogue, Message, role, text


def best_path(record: Record) -> Iterator[Dialogue]:
    """From the root along the best-ranked replies; every other message is passed over."""
    path, node = [], record["prompt"]
    while node is not None:
        path.append(_message(node))
        node = min(_replies(node), key=_rank, default=None)
    yield Dialogue(path, passed_over=_count(record["prompt"]) - len(path))


def all_paths(record: Record) -> Iterator[Dialogue]:
    """Every way from the root to a leaf, best-ranked first."""
    open_paths: list[tuple[Any, tuple[Message, ...]]] = [(record["prompt"], ())]
    while open_paths:
        node, before = open_paths.pop()
        path = (*before, _message(node))
        replies = sorted(_replies(node), key=_rank, reverse=True)
        open_paths += [(reply, path) for reply in replies]
        if not replies:
            yield Dialogue(list(path))


def is_tree(record: Record) -> bool:
    prompt = record.get("prompt")
    return isinstance(prompt, dict) and "text" in prompt and "role" in prompt


def _message(node: Record) -> Message:
    return Message(role(node.get("role")), text(node.get("text")))


def _replies(node: Record) -> list[Record]:
    replies = node.get("replies")
    return [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []


def _rank(node: Record) -> float:
    """0 is the best; messages that nobody ranked come last, in the file's order."""
    rank = node.get("rank")
    return rank if isinstance(rank, (int, float)) else float("inf")


def _count(root: Record) -> int:
    count, open_nodes = 0, [root]
    while open_nodes:
        node = open_nodes.pop()
        count += 1
        open_nodes += _replies(node)
    return count


_SHAPE = '{"prompt": {"text": "...", "role": "prompter", "replies": [{...}]}}'
TREES = {"oasst": Layout(_SHAPE, is_tree, best_path), "oasst-all": Layout(_SHAPE, is_tree, all_paths)}
