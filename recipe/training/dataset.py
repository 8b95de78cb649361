"""Samples as tensors: a prepared corpus file -> token ids and labels -> packs of whole conversations."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipe.conversations.packing import fill, saved_tokens, schedule
from recipe.conversations.samples import read_samples
from recipe.conversations.templates import render
from recipe.conversations.tokens import encode
from recipe.core.errors import RecipeError
from recipe.core.text import progress
from recipe.model.likelihood import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast


class PackedDataset(torch.utils.data.Dataset):
    """The packs of a whole run in order, each within a token budget. Built once, it never changes.

    Two conversations of 7 and 6 tokens with a common prefix of 3, `S` its tokens, `u` a user's, `a` an assistant's,
    `e` the end of a sequence, `.` the label -100:

        conversation 1   S0 S1 S2 u3 a4 a5 e6        conversation 2   S0 S1 S2 u3 a4 e5
        labels            .  .  .  .  a4 a5 e6       labels            .  .  .  .  a4 e5

    become one pack of 10 tokens, in which the prefix is stored once:

                          conversation 1              | conversation 2
        input_ids         S0 S1 S2 u3 a4 a5 e6        | u3 a4 e5
        position_ids       0  1  2  3  4  5  6        |  3  4  5       positions restart after the prefix
        labels             .  .  .  . a4 a5 e6        |  . a4 e5       the first token of each is never a target:
                                                                       the token before it belongs to another
        lengths           [7, 6]                                       with the prefix, so their sum is 13
        prefix            3

    Attention of conversation 2 (document masking): its queries see the prefix and its own past, never conversation 1.

        keys              S0 S1 S2 u3 a4 a5 e6 | u3 a4 e5
        query u3           x  x  x  .  .  .  . |  x  .  .
        query a4           x  x  x  .  .  .  . |  x  x  .
        query e5           x  x  x  .  .  .  . |  x  x  x

    No mask of that shape exists: `packed_attention` cuts the pack at `lengths` and makes one causal call for each
    conversation, with the prefix put before it. Which conversations share a pack changes no loss.
    """

    def __init__(
        self, rows: "Dataset", budget: int, seed: int = 0, epochs: float = 1.0, packs_per_step: int = 1
    ) -> None:
        """rows: `input_ids`, `labels` (see `encode_file`); budget: tokens of a pack; the number of packs is a multiple
        of `packs_per_step`."""
        self.rows = rows
        self.budget = budget
        self.lengths = [len(ids) for ids in rows.with_format("numpy")["input_ids"]]
        self.prefix = common_prefix(rows)
        self.packs = schedule(self.lengths, budget, seed, epochs, packs_per_step, self.prefix)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The pack with this number, as `collate` makes it, and its `number`."""
        return {**collate([self.rows[row] for row in self.packs[number]], self.prefix), "number": number}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    @property
    def fill(self) -> float:
        """The share of the packs' token budget that is used."""
        return fill(self.packs, self.lengths, self.budget, self.prefix)

    def count_tokens(self, packs: int) -> int:
        """Tokens of the conversations in the first `packs` packs, the common prefix counted for each."""
        return self._tokens_before[packs]

    def count_trained_tokens(self, packs: int) -> int:
        """Tokens with a loss in the first `packs` packs."""
        counts = [int((labels[1:] != IGNORED).sum()) for labels in self.rows.with_format("numpy")["labels"]]
        return sum(counts[row] for pack in self.packs[:packs] for row in pack)

    @functools.cached_property
    def _tokens_before(self) -> list[int]:
        sums = (sum(self.lengths[row] for row in pack) for pack in self.packs)
        return list(itertools.accumulate(sums, initial=0))


def encode_file(file: Path, tokenizer: "PreTrainedTokenizerFast", template: str) -> "Dataset":
    """Arrow rows of every sample of a prepared file: `input_ids` and `labels`, int32 [tokens], not shifted.

    A label is -100 where no loss is computed. Raises RecipeError if the file is missing or has no sample.
    """
    import numpy as np
    from datasets import Dataset

    ids, labels = [], []
    for messages in progress(read_samples(file), desc=f"tokenize {file.name}", unit=" samples"):
        sample_ids, sample_labels = encode(tokenizer, render(template, messages))
        ids.append(np.array(sample_ids, dtype=np.int32))
        labels.append(np.array(sample_labels, dtype=np.int32))
    if not ids:
        raise RecipeError(
            f"{file} has no sample, expected at least one: prepare the corpus again with other sources or with another "
            "corpus.val_fraction"
        )
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def common_prefix(rows: "Dataset") -> int:
    """Length of the longest common token prefix of all rows (the system prompt).

    None of its tokens predicts a trained one. 0 if sharing the prefix saves nothing.
    """
    first, length = None, 0
    for batch in rows.with_format("numpy").iter(1000):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            before_loss = max(0, int((labels != IGNORED).argmax()) - 1)
            first, length = (ids, before_loss) if first is None else (first, min(length, before_loss))
            same = ids[:length] == first[:length]
            length = length if same.all() else int(same.argmin())
            if not saved_tokens(length):
                return 0
    return length


def collate(samples: list[dict[str, list[int]]], prefix: int = 0) -> dict[str, Any]:
    """One pack: `input_ids`, `position_ids`, `labels`, int64 [1, tokens] each, `lengths` (ints) and `prefix` (an int).

    All samples begin with the same `prefix` tokens, which only the first one contributes. See `PackedDataset`.
    """
    starts = [0] + [prefix] * (len(samples) - 1)
    pairs = list(zip(samples, starts, strict=True))
    return {
        "input_ids": _join(sample["input_ids"][start:] for sample, start in pairs),
        "position_ids": _join(range(start, len(sample["input_ids"])) for sample, start in pairs),
        "labels": _join([IGNORED, *sample["labels"][start + 1 :]] for sample, start in pairs),
        "lengths": [len(sample["input_ids"]) for sample in samples],
        "prefix": prefix,
    }


def separate(pack: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    """The samples of a pack: the inverse of `collate`, but for labels that are never a target."""
    prefix = pack["prefix"]
    ids, labels = pack["input_ids"][0].tolist(), pack["labels"][0].tolist()
    samples, start = [], 0
    for length in pack["lengths"]:
        shared = prefix if start else 0
        end = start + length - shared
        samples.append({"input_ids": ids[:shared] + ids[start:end], "labels": [IGNORED] * shared + labels[start:end]})
        start = end
    return samples


def _join(sequences: Iterable[Iterable[int]]) -> torch.Tensor:
    return torch.tensor([list(itertools.chain.from_iterable(sequences))])
