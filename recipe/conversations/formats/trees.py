"""Trees of messages: Open Assistant's ranked replies, as trees or one message a record, and ChatGPT's own export."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.base import Format, Record, RefusedError, are_strings, keys
from recipe.conversations.messages import Dialogue, Message, read_role, read_text
from recipe.conversations.readers.json_stream import MAX_RECORD, Rejected, is_too_deep
from recipe.conversations.readers.json_stream import Record as RawRecord

_HIDDEN = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")  # never shown as a turn
_IMAGE = "image_asset_pointer"


def read_best_path(record: Record) -> Iterator[Dialogue]:
    """From the root along the best-ranked replies that reviewers left; every other message is passed over."""
    path = []
    node: Record | None = _check_root(record["prompt"])
    while node is not None:
        path.append(_read_node(node))
        node = min(_find_replies(node), key=_rank, default=None)
    yield Dialogue(path, passed_over=_count(record["prompt"]) - len(path))


def read_all_paths(record: Record) -> Iterator[Dialogue]:
    """Every path from the root to a leaf, best-ranked first; messages that reviewers took out are passed over."""
    root = _check_root(record["prompt"])
    taken_out = _count(root) - _count(root, _find_replies)
    open_paths: list[tuple[Any, tuple[Message, ...]]] = [(root, ())]
    while open_paths:
        node, before = open_paths.pop()
        path = (*before, _read_node(node))
        replies = sorted(_find_replies(node), key=_rank, reverse=True)
        open_paths += [(reply, path) for reply in replies]
        if not replies:
            yield Dialogue(list(path), taken_out)
            taken_out = 0


def is_tree(record: Record) -> bool:
    prompt = record.get("prompt")
    return isinstance(prompt, dict) and "text" in prompt and "role" in prompt


def _read_node(node: Record) -> Message:
    return Message(read_role(node.get("role")), read_text(node.get("text")))


def _check_root(root: Record) -> Record:
    if _is_taken_out(root):
        raise RefusedError(Drop.MARKED_BAD, "its first message is deleted, or failed its review")
    return root


def _is_taken_out(node: Record) -> bool:
    return node.get("deleted") is True or node.get("review_result") is False


def _find_replies(node: Record) -> list[Record]:
    """The replies that are neither deleted nor failed their review."""
    return [reply for reply in _find_all_replies(node) if not _is_taken_out(reply)]


def _find_all_replies(node: Record) -> list[Record]:
    replies = node.get("replies")
    return [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []


def _rank(node: Record) -> float:
    """0 is the best; messages without a rank come last, in the file's order."""
    rank = node.get("rank")
    return rank if isinstance(rank, (int, float)) else float("inf")


def _count(root: Record, find: Callable[[Record], list[Record]] = _find_all_replies) -> int:
    count, open_nodes = 0, [root]
    while open_nodes:
        node = open_nodes.pop()
        count += 1
        open_nodes += find(node)
    return count


def is_flat_message(value: Any) -> bool:
    """Whether `value` is one message of Open Assistant's flat files, which names its parent."""
    return (
        isinstance(value, dict)
        and "parent_id" in value
        and "replies" not in value
        and are_strings(value, "message_id", "message_tree_id", "text", "role")
    )


def group_messages(records: Iterable[RawRecord | Rejected], source: str) -> Iterator[RawRecord | Rejected]:
    """Flat messages as trees, other records as they are.

    The messages of a tree follow each other in the published files, so one tree is in memory at a time.
    """
    group: list[RawRecord] = []
    size = 0
    for record in records:
        is_flat = isinstance(record, RawRecord) and is_flat_message(record.value)
        if group and (not is_flat or size > MAX_RECORD or _get_tree_id(record) != _get_tree_id(group[0])):
            yield from _build_tree(group, source)
            group, size = [], 0
        if isinstance(record, RawRecord) and is_flat:
            group.append(record)
            size += record.size
        else:
            yield record
    yield from _build_tree(group, source)


def _get_tree_id(record: RawRecord | Rejected) -> Any:
    return record.value["message_tree_id"] if isinstance(record, RawRecord) else None


def _build_tree(group: list[RawRecord], source: str) -> Iterator[RawRecord | Rejected]:
    nodes = {record.value["message_id"]: record.value | {"replies": []} for record in group}
    root = None
    for record in group:
        node, parent = nodes[record.value["message_id"]], record.value["parent_id"]
        if parent in nodes and nodes[parent] is not node:
            nodes[parent]["replies"].append(node)
        elif not parent and root is None:
            root = node
        else:
            detail = f"a message of a tree without its parent {str(parent)[:40]!r} beside it"
            yield Rejected(source, record.offset, Drop.UNKNOWN_FORMAT, detail, record.value["text"][:1000], record.size)
    if root is not None:
        tree = {"message_tree_id": root["message_tree_id"], "prompt": root}
        size = sum(record.size for record in group)
        if is_too_deep(tree):
            yield Rejected(source, group[0].offset, Drop.TOO_DEEP, "a tree of messages", root["text"][:1000], size)
        else:
            yield RawRecord(group[0].offset, tree, size)


def read_chatgpt(record: Record) -> Iterator[Dialogue]:
    """The branch that ends at `current_node` (without one: at the last node); messages of others are passed over."""
    mapping = record["mapping"]
    node_id = record.get("current_node")
    branch: list[Record] = []
    seen: set[Any] = set()
    node_id = node_id if isinstance(node_id, str) and node_id in mapping else next(reversed(mapping), None)
    while isinstance(node_id, str) and node_id not in seen and isinstance(node := mapping.get(node_id), dict):
        seen.add(node_id)
        branch.append(node)
        node_id = node.get("parent")
    messages = [message for node in reversed(branch) if (message := _read_export(node))]
    others = [node for name, node in mapping.items() if name not in seen]
    yield Dialogue(messages, passed_over=sum(_is_shown(node) for node in others))


def _is_shown(node: Any) -> bool:
    """Whether an export's node holds a turn with text that a person saw."""
    message = node.get("message") if isinstance(node, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return (
        isinstance(content, dict)
        and isinstance(message, dict)
        and not _is_hidden(message)
        and content.get("content_type") not in _HIDDEN
        and any(part if isinstance(part, str) else part is not None for part in _read_parts(content))
    )


def _read_parts(content: Record) -> list[Any]:
    parts = content.get("parts")
    return parts if isinstance(parts, list) else [content.get("text") or content.get("result")]


def _is_hidden(message: Record) -> bool:
    metadata = message.get("metadata")
    is_marked = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation") is True
    return is_marked or message.get("weight") == 0


def _is_tool(node: Record) -> bool:
    message = node.get("message")
    author = message.get("author") if isinstance(message, dict) else None
    return isinstance(author, dict) and author.get("role") == "tool"


def _read_export(node: Record) -> Message | None:
    """The node's turn, None where the page showed none. A call of a tool is an answer, its result a user turn: a blank
    one where it was not shown, so that the call is not joined to the answer behind it."""
    if not _is_shown(node):
        return Message("user", "") if _is_tool(node) else None
    message = node["message"]
    parts = _read_parts(message["content"])
    if any(isinstance(part, dict) for part in parts):
        raise RefusedError(Drop.MEDIA, "a turn with an image, a recording or a file")
    author = message.get("author")
    role = read_role(author.get("role") if isinstance(author, dict) else None)
    text = "\n".join(part for part in parts if isinstance(part, str))
    return Message("user" if role == "tool" else role, text)


def is_chatgpt(record: Record) -> bool:
    mapping = record.get("mapping")
    return isinstance(mapping, dict) and any(
        isinstance(node, dict) and "message" in node and "parent" in node for node in mapping.values()
    )


_SHAPE = '{"prompt": {"text": "...", "role": "prompter", "replies": [{...}]}}'
TREES = {
    "oasst": Format(_SHAPE, keys("prompt"), is_tree, read_best_path, specific=True),
    "oasst-all": Format(_SHAPE, keys("prompt"), is_tree, read_all_paths, specific=True),
    "chatgpt": Format(
        '{"title": "...", "mapping": {"...": {"message": {...}, "parent": "..."}}, "current_node": "..."}',
        keys("mapping"),
        is_chatgpt,
        read_chatgpt,
        specific=True,
    ),
}
