"""Lists of questions and answers: whole conversations (XTuner, COIG, LIMA, ...), and the history before a question."""

from collections.abc import Callable, Iterator
from typing import Any

from recipe.conversations.cleaning.accounting import Drop
from recipe.conversations.formats.base import (
    Format,
    Record,
    RefusedError,
    are_strings,
    are_texts,
    is_list_of,
    keys,
    read_list,
)
from recipe.conversations.formats.marks import is_off
from recipe.conversations.formats.turns import read_system, read_turns
from recipe.conversations.messages import Dialogue, Message, alternate, read_text

# Names of a question and its answer in a list of pairs, as XTuner, COIG and others have it.
_NAMES = (
    ("input", "output"),
    ("question", "answer"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("prompt", "response"),
    ("query", "response"),
    ("instruction", "output"),
    ("user", "bot"),
)
_LISTS = ("conversation", "conversations", "dialogue", "turns")


def read_history(history: Any) -> list[Message]:
    """Earlier turns: (question, answer) pairs, turns with roles, or texts in turn; or the JSON text of such a list.

    Raises RefusedError where there is a history that cannot be read: without it the question means something else.
    """
    items = read_list(history)
    if not items or items != items or (isinstance(items, str) and not items.strip()):
        return []
    if isinstance(items, list):
        first = items[0]
        if all(isinstance(item, (list, tuple)) for item in items):
            return alternate(*(turn for pair in items for turn in (*pair, "", "")[:2]))
        if isinstance(first, dict) and ("role" in first or "from" in first):
            return read_turns(items, "role" if "role" in first else "from")
        if are_texts(items) and len(items) % 2 == 0:
            return alternate(*items)
        if names := _find_names(first):
            return alternate(*(item.get(name) for item in items if isinstance(item, dict) for name in names))
    raise RefusedError(Drop.UNKNOWN_FORMAT, "its history is not a list of (question, answer) pairs or of turns")


def read_firefly(record: Record) -> Iterator[Dialogue]:
    """Firefly's pairs in `conversation`, or one pair as `input` and `target` with its `kind`."""
    if is_list_of(record.get("conversation"), "human"):
        yield _read_pairs(record, record["conversation"], ("human", "assistant"))
    else:
        yield Dialogue(alternate(record["input"], record["target"]))


def is_firefly(record: Record) -> bool:
    return is_list_of(record.get("conversation"), "human") or are_strings(record, "kind", "input", "target")


def read_xtuner(record: Record) -> Iterator[Dialogue]:
    """Pairs in `conversation` or under a like name; XTuner's `output_with_loss: false` marks an answer as context.

    COIG's `instruction` beside the pairs is the system prompt.
    """
    pairs, names = _find_pairs(record)
    if isinstance(record.get("instruction"), str) and not read_system(record):
        record = {"system": record["instruction"]}
    yield _read_pairs(record, pairs, names)


def is_xtuner(record: Record) -> bool:
    return bool(_find_pairs(record)[0])


def _find_pairs(record: Record) -> tuple[list[Any], tuple[str, str]]:
    for key in _LISTS:
        items = record.get(key)
        if not (isinstance(items, list) and items):
            continue
        if names := _find_names(items[0]):
            return items, names
        if isinstance(items[0], list) and all(are_texts(item) and len(item) == 2 for item in items):
            return [dict(zip(_NAMES[0], item, strict=True)) for item in items], _NAMES[0]
    return [], ("", "")


def _find_names(pair: Any) -> tuple[str, str] | None:
    """The names of the question and the answer in a pair; None where it is not one."""
    if not isinstance(pair, dict):
        return None
    return next((names for names in _NAMES if names[0] in pair and names[1] in pair), None)


def _read_pairs(record: Record, pairs: list[Any], names: tuple[str, str]) -> Dialogue:
    messages: list[Message] = []
    for pair in pairs:
        pair = pair if isinstance(pair, dict) else {}
        system = read_system(pair) or (read_system(record) if not messages else "")
        messages += alternate(pair.get(names[0]), system=system)
        messages.append(Message("assistant", read_text(pair.get(names[1])), not is_off(pair.get("output_with_loss"))))
    return Dialogue(messages)


def read_list_of_texts(key: str) -> Callable[[Record], Iterator[Dialogue]]:
    def read(record: Record) -> Iterator[Dialogue]:
        yield Dialogue(alternate(*record[key], system=read_system(record)))

    return read


def read_dialogstudio(record: Record) -> Iterator[Dialogue]:
    turns = [turn if isinstance(turn, dict) else {} for turn in record["log"]]
    yield Dialogue(alternate(*(turn.get(side) for turn in turns for side in ("user utterance", "system response"))))


PAIR_LISTS = {
    "lima": Format(
        '{"conversations": ["question", "answer", ...]}',
        keys("conversations"),
        lambda record: are_texts(record.get("conversations")),
        read_list_of_texts("conversations"),
    ),
    "ultrachat": Format(
        '{"data": ["question", "answer", ...]}',
        keys("data"),
        lambda record: are_texts(record.get("data")),
        read_list_of_texts("data"),
    ),
    "firefly": Format(
        '{"kind": "...", "input": "...", "target": "..."}',
        keys("conversation", "kind input target"),
        is_firefly,
        read_firefly,
    ),
    "xtuner": Format(
        '{"conversation": [{"system": "...", "input": "...", "output": "..."}]}',
        keys(*_LISTS),
        is_xtuner,
        read_xtuner,
    ),
    "dialogstudio": Format(
        '{"log": [{"user utterance": "...", "system response": "..."}]}',
        keys("log"),
        lambda record: is_list_of(record.get("log"), "user utterance"),
        read_dialogstudio,
    ),
}
