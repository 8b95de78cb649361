"""Samples as tensors: a prepared corpus file -> token ids and labels -> packs, conversations side by side."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipe import console
from recipe.conversations.formats import Message
from recipe.conversations.packing import pack
from recipe.conversations.templates import render
from recipe.conversations.tokens import encode
from recipe.errors import RecipeError
from recipe.model import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset


def read_samples(file: Path) -> Iterator[list[Message]]:
    """The messages of each line of a prepared train.jsonl or val.jsonl."""
    if not file.is_file():
        raise RecipeError(f"no prepared corpus at {file}: run `python -m recipe.corpus` first")
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            yield [Message(**message) for message in json.loads(line)["messages"]]


def encode_file(file: Path, tokenizer: Any, template: str) -> "Dataset":
    """Arrow rows `input_ids`, `labels` (int32, unshifted, -100 where no loss is) of every sample of a prepared file."""
    import numpy as np
    from datasets import Dataset

    ids, labels = [], []
    for messages in console.progress(read_samples(file), desc=f"tokenize {file.name}", unit=" samples"):
        sample_ids, sample_labels = encode(tokenizer, render(template, messages))
        ids.append(np.array(sample_ids, dtype=np.int32))
        labels.append(np.array(sample_labels, dtype=np.int32))
    if not ids:
        raise RecipeError(f"{file} holds no sample: prepare the corpus again with other sources")
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def lengths(rows: "Dataset") -> list[int]:
    """Tokens of every row."""
    return [len(ids) for ids in rows.with_format("numpy")["input_ids"]]


def collate(samples: list[dict[str, list[int]]]) -> dict[str, Any]:
    """One pack: `input_ids`, `position_ids`, `labels`, each [1, tokens] int64, and `lengths`, a list of ints.

    Positions restart with every conversation, and the first token of each is no target: the one before is another's.
    """
    return {
        "input_ids": _row(sample["input_ids"] for sample in samples),
        "position_ids": _row(range(len(sample["input_ids"])) for sample in samples),
        "labels": _row([IGNORED, *sample["labels"][1:]] for sample in samples),
        "lengths": [len(sample["input_ids"]) for sample in samples],
    }


def _row(parts: Iterable[Iterable[int]]) -> torch.Tensor:
    return torch.tensor([list(itertools.chain.from_iterable(parts))])


def batches(rows: "Dataset", budget: int) -> Iterator[dict[str, Any]]:
    """All rows in packs of at most `budget` tokens. Which share one never changes a sum."""
    for chosen in pack(lengths(rows), budget, seed=0):
        yield collate([rows[row] for row in chosen])
