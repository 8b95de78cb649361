"""A prepared corpus in the layouts that other trainers read. Nothing is lost: `formats` reads each back the same."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Turns = list[dict[str, str]]


def _alpaca(sample: dict[str, Any]) -> dict[str, Any]:
    """The last pair as instruction and output, those before as `history`."""
    system, turns = _without_system(sample["messages"])
    texts = [turn["content"] for turn in turns]
    history = [texts[at : at + 2] for at in range(0, len(texts) - 2, 2)]
    out = {"id": sample["id"], "instruction": texts[-2], "input": "", "output": texts[-1], "history": history}
    return out | {"system": system} if system else out


def _sharegpt(sample: dict[str, Any]) -> dict[str, Any]:
    sides = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": sides[turn["role"]], "value": turn["content"]} for turn in sample["messages"]]
    return {"id": sample["id"], "conversations": turns}


def _messages(sample: dict[str, Any]) -> dict[str, Any]:
    return {"id": sample["id"], "messages": sample["messages"]}


EXPORTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
}


def lines(file: Path, layout: str) -> Iterator[str]:
    """A train.jsonl or val.jsonl as the text of a JSON array in that layout, one record a line."""
    convert = EXPORTS[layout]
    opening = "[\n"
    with open(file, encoding="utf-8") as samples:
        for line in samples:
            yield opening + json.dumps(convert(json.loads(line)), ensure_ascii=False)
            opening = ",\n"
    yield "\n]\n" if opening == ",\n" else "[]\n"


def _without_system(messages: Turns) -> tuple[str, Turns]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages
