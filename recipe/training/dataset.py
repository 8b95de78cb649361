"""Samples as tensors: a prepared corpus file -> token ids and labels -> packs, conversations side by side."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipe.conversations.messages import Message
from recipe.conversations.packing import pack, saved, schedule
from recipe.conversations.templates import render
from recipe.conversations.tokens import encode
from recipe.core.config import Train
from recipe.core.errors import RecipeError
from recipe.core.text import progress
from recipe.model.likelihood import IGNORED

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
    for messages in progress(read_samples(file), desc=f"tokenize {file.name}", unit=" samples"):
        sample_ids, sample_labels = encode(tokenizer, render(template, messages))
        ids.append(np.array(sample_ids, dtype=np.int32))
        labels.append(np.array(sample_labels, dtype=np.int32))
    if not ids:
        raise RecipeError(f"{file} holds no sample: prepare the corpus again with other sources")
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def lengths(rows: "Dataset") -> list[int]:
    """Tokens of every row."""
    return [len(ids) for ids in rows.with_format("numpy")["input_ids"]]


def shared_start(rows: "Dataset") -> int:
    """How many tokens, the same ones, all rows begin with, none of them predicting a trained one: the system prompt.

    0 where so few that sharing them saves nothing.
    """
    first, shared = None, 0
    for batch in rows.with_format("numpy").iter(1000):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            before_loss = max(0, int((labels != IGNORED).argmax()) - 1)
            first, shared = (ids, before_loss) if first is None else (first, min(shared, before_loss))
            same = ids[:shared] == first[:shared]
            shared = shared if same.all() else int(same.argmin())
            if not saved(shared):
                return 0
    return shared


def packs_of(rows: "Dataset", train: Train, shared: int) -> list[list[int]]:
    """The packs of the whole run, in order."""
    return schedule(
        lengths(rows), train.micro_batch_tokens, train.seed, train.epochs, train.gradient_accumulation_steps, shared
    )


def collate(samples: list[dict[str, list[int]]], shared: int = 0) -> dict[str, Any]:
    """One pack: `input_ids`, `position_ids`, `labels`, each [1, tokens] int64, `lengths`, a list of ints, and `shared`.

    Positions restart with every conversation, and the first token of each is no target: the one before is another's.
    The first `shared` tokens of all are the same (`shared_start`), so only the first conversation brings them.
    """
    starts = [0] + [shared] * (len(samples) - 1)
    cut = list(zip(samples, starts, strict=True))
    return {
        "input_ids": _row(sample["input_ids"][start:] for sample, start in cut),
        "position_ids": _row(range(start, len(sample["input_ids"])) for sample, start in cut),
        "labels": _row([IGNORED, *sample["labels"][start + 1 :]] for sample, start in cut),
        "lengths": [len(sample["input_ids"]) for sample in samples],
        "shared": shared,
    }


def _row(parts: Iterable[Iterable[int]]) -> torch.Tensor:
    return torch.tensor([list(itertools.chain.from_iterable(parts))])


def batches(rows: "Dataset", budget: int) -> Iterator[dict[str, Any]]:
    """All rows in packs of at most `budget` tokens. Which share one never changes a sum."""
    shared = shared_start(rows)
    for chosen in pack(lengths(rows), budget, seed=0, shared=shared):
        yield collate([rows[row] for row in chosen], shared)
