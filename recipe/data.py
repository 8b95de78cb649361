"""Samples as tensors: a prepared corpus file -> token ids and labels -> padded batches."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipe import console
from recipe.conversations.formats import Message
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


def collate(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest: input_ids, attention_mask, labels, each [rows, length] int64."""
    length = max(len(sample["input_ids"]) for sample in samples)

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([list(sample[name]) + [fill] * (length - len(sample[name])) for sample in samples])

    mask = [[1] * len(sample["input_ids"]) + [0] * (length - len(sample["input_ids"])) for sample in samples]
    return {
        "input_ids": padded("input_ids", 0),  # any id: nothing attends to it
        "attention_mask": torch.tensor(mask),
        "labels": padded("labels", IGNORED),
    }


def batches(rows: "Dataset", size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches of `size` rows, in order of length so that little is padding. The order never changes a sum."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    for start in range(0, len(order), size):
        yield collate([rows[row] for row in order[start : start + size]])
