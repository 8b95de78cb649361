"""The usual way to prepare ShareGPT, for comparison: the clean, split and role check of FastChat's scripts, in the same
steps, over a process pool.

    python tests/bench/usual.py RAW TOKENIZER_MODEL FOLDER

It writes clean.json and split.json to FOLDER. It needs markdownify 0.11.6, the version that FastChat requires.
"""

import contextlib
import json
import re
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

MAX_LENGTH = 2048
OVERHEAD = 6  # tokens that a template is assumed to add to a turn

_OPENING_TAG = re.compile("<(?:div|span).*?>")
_COPIED_CODE = re.compile(r"```\s*(.*?)(?:Copy code)+(.+?)\s*?```", re.S)
_COUNTER = re.compile(r"\A\d+ / \d+")
_COPY_CHARACTERS = re.compile(r"Copy\d+ chars / \d+ words")
_EMPTY_CODE = re.compile(r"```(.*?)Copy code\s*```")

tokenizer: Any


def clean_text(text: str) -> str:
    import markdownify

    text = markdownify.markdownify(_OPENING_TAG.sub("", text)).strip()
    text = _COPIED_CODE.sub("```\\g<1>\n\\g<2>\n```", text)
    text = _COPY_CHARACTERS.sub("", _COUNTER.sub("", text))
    return _EMPTY_CODE.sub("", text).replace("\n\n\n", "\n").strip()


def clean(record: dict[str, Any]) -> dict[str, Any] | None:
    warnings.simplefilter("ignore")  # bs4 warns about most turns
    if record["conversations"] and record["conversations"][0]["from"] != "human":
        record["conversations"].pop(0)
    if len(record["conversations"]) <= 1:
        return None
    for turn in record["conversations"]:
        try:
            turn["value"] = clean_text(turn["value"])
        except Exception:  # the parser fails on some real turns in several ways: skip the conversation
            return None
    return record


def split(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Cut between pairs where MAX_LENGTH is exceeded. As in FastChat, a last pair that begins a new sample is lost."""
    turns = record["conversations"][: len(record["conversations"]) // 2 * 2]
    lengths = [len(tokenizer(turn["value"]).input_ids) + OVERHEAD for turn in turns]
    borders, start, size = [], 0, 0
    for at in range(0, len(turns), 2):
        pair = lengths[at] + lengths[at + 1]
        if size + pair > MAX_LENGTH:
            borders.append((start, at))
            start, size = at, 0
        elif at == len(turns) - 2:
            borders.append((start, at + 2))
        size += pair
    return [
        {"id": record["id"], "conversations": turns[first:last], "tokens": sum(lengths[first:last])}
        for first, last in borders
    ]


def in_turn(sample: dict[str, Any]) -> bool:
    roles = [turn["from"] for turn in sample["conversations"]]
    return bool(roles) and all(role == ("human", "gpt")[index % 2] for index, role in enumerate(roles))


def main(raw: Path, model: Path, folder: Path) -> None:
    """Run the steps; each loads everything, works over a process pool and writes everything."""
    from transformers import LlamaTokenizer

    global tokenizer
    records = json.loads(raw.read_text(encoding="utf-8"))
    with ProcessPoolExecutor() as pool:
        cleaned = [record for record in pool.map(clean, records, chunksize=16) if record]
    (folder / "clean.json").write_text(json.dumps(cleaned, indent=2), encoding="utf-8")

    tokenizer = LlamaTokenizer(str(model), legacy=True)
    records = json.loads((folder / "clean.json").read_text(encoding="utf-8"))
    with ProcessPoolExecutor() as pool:  # forked workers inherit the tokenizer
        samples = [sample for found in pool.map(split, records, chunksize=16) for sample in found if in_turn(sample)]
    (folder / "split.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*map(Path, sys.argv[1:]))
