"""A prepared corpus in the formats of other trainers. Nothing is lost: `detect` reads each back the same."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.text import say

Sample = dict[str, Any]
SPLITS = ("train", "val")
_SIDES = {"system": "system", "user": "human", "assistant": "gpt"}


def _alpaca(sample: Sample) -> Sample:
    """The last pair as instruction and output, those before as `history`."""
    if not all(turn.get("trained", True) for turn in sample["messages"]):
        raise RecipeError(
            f"the sample {sample['id']!r} has an answer that is not to be trained, which Alpaca's format cannot mark: "
            "export as messages or axolotl"
        )
    system, turns = _split_system(sample["messages"])
    texts = [turn["content"] for turn in turns]
    history = [texts[at : at + 2] for at in range(0, len(texts) - 2, 2)]
    out = {"id": sample["id"], "instruction": texts[-2], "input": "", "output": texts[-1], "history": history}
    return out | {"system": system}


def _sharegpt(sample: Sample) -> Sample:
    turns = [
        {"from": _SIDES[turn["role"]], "value": turn["content"]} | _mark(turn, {"weight": 0})
        for turn in sample["messages"]
    ]
    return {"id": sample["id"], "conversations": turns}


def _messages(sample: Sample) -> Sample:
    return {"id": sample["id"], "messages": _plain_turns(sample, {"weight": 0})}  # as OpenAI marks it


def _axolotl(sample: Sample) -> Sample:
    return {"id": sample["id"], "messages": _plain_turns(sample, {"train": False})}  # message_field_training: train


def _plain_turns(sample: Sample, mark: Sample) -> list[Sample]:
    return [{"role": turn["role"], "content": turn["content"]} | _mark(turn, mark) for turn in sample["messages"]]


def _mark(turn: Sample, mark: Sample) -> Sample:
    return {} if turn.get("trained", True) else mark


def _split_system(messages: list[Sample]) -> tuple[str, list[Sample]]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


@dataclass(frozen=True)
class Export:
    """How a sample is written, and what LLaMA-Factory's dataset_info.json says of such a file."""

    convert: Callable[[Sample], Sample]
    suffix: str = ".json"  # .jsonl: one JSON object a line instead of one array
    llama_factory: dict[str, Any] = field(default_factory=dict)


def _chat_entry(messages: str, role: str, content: str, user: str, assistant: str) -> dict[str, Any]:
    tags = {"role_tag": role, "content_tag": content, "user_tag": user, "assistant_tag": assistant}
    return {"formatting": "sharegpt", "columns": {"messages": messages}, "tags": tags | {"system_tag": "system"}}


EXPORTS = {
    "alpaca": Export(
        _alpaca,
        llama_factory={
            "formatting": "alpaca",
            "columns": {
                "prompt": "instruction",
                "query": "input",
                "response": "output",
                "system": "system",
                "history": "history",
            },
        },
    ),
    "sharegpt": Export(_sharegpt, llama_factory=_chat_entry("conversations", "from", "value", "human", "gpt")),
    "messages": Export(_messages, llama_factory=_chat_entry("messages", "role", "content", "user", "assistant")),
    "axolotl": Export(_axolotl, ".jsonl"),
}


def lines(file: Path, name: str) -> Iterator[str]:
    """The samples of a train.jsonl or val.jsonl in that format: as the text of a JSON array, or as JSON Lines."""
    chosen = EXPORTS[name]
    with open(file, encoding="utf-8") as samples:
        texts = (json.dumps(chosen.convert(json.loads(line)), ensure_ascii=False) for line in samples)
        if chosen.suffix == ".jsonl":
            yield from (text + "\n" for text in texts)
            return
        opening = "[\n"
        for text in texts:
            yield opening + text
            opening = ",\n"
        yield "\n]\n" if opening == ",\n" else "[]\n"


def _has_untrained(file: Path) -> bool:
    with open(file, encoding="utf-8") as samples:
        return any(not turn.get("trained", True) for line in samples for turn in json.loads(line)["messages"])


def write(corpus: Path, folder: Path, name: str) -> None:
    """Write both splits of a prepared corpus into `folder`, with LLaMA-Factory's dataset_info.json where it reads them.

    It would train every answer: where one is marked as untrained, it is left out, with a notice.
    Raises RecipeError where a sample cannot be written in the format.
    """
    chosen = EXPORTS[name]
    entries = {}
    for split in SPLITS:
        file_name = f"{split}{chosen.suffix}"
        with open(folder / file_name, "w", encoding="utf-8") as file:
            file.writelines(lines(corpus / f"{split}.jsonl", name))
        entries[f"{corpus.name}-{split}"] = {"file_name": file_name} | chosen.llama_factory
    if chosen.llama_factory and any(_has_untrained(corpus / f"{split}.jsonl") for split in SPLITS):
        say("no dataset_info.json: LLaMA-Factory cannot leave out the answers that are marked as untrained")
    elif chosen.llama_factory:
        (folder / "dataset_info.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")
