"""Scores of base and tuned model side by side, as plain values with intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from recipe.core.text import progress
from recipe.evaluation import choices
from recipe.evaluation.choices import Question
from recipe.evaluation.intervals import Paired, ratio
from recipe.evaluation.texts import Sample
from recipe.model.likelihood import pack_token_nll

Losses = list[list[float]]  # for each sample the negative log-likelihood, in nats, of its trained tokens


class Packs(Protocol):
    """Packs of samples in order, as `training.dataset.PackedDataset`; `packs` are the samples' numbers."""

    packs: list[list[int]]

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


def score(model: Any, data: Packs, what: str) -> Losses:
    """The losses of every sample in `data`, one pack in memory at a time."""
    was_training = model.training
    model.eval()
    out: Losses = [[] for _ in range(1 + max(max(numbers) for numbers in data.packs))]
    for index, numbers in enumerate(progress(data.packs, desc=what, unit=" packs")):
        for number, losses in zip(numbers, pack_token_nll(model, data[index]), strict=True):
            out[number] = losses
    model.train(was_training)
    return out


def bits_per_byte(samples: Sequence[Sample], base: Losses, tuned: Losses) -> dict[str, list[float]]:
    """[value, low, high] of base, tuned and difference, drawn by samples."""
    sizes = np.array([sample.bytes * math.log(2) for sample in samples])
    return plain(ratio(_sums(base), _sums(tuned), sizes))


def forgetting(samples: Sequence[Sample], base: Losses, tuned: Losses, digest: str) -> dict[str, Any]:
    """Bits per byte on the probe's text, and whether the tuned model is worse there by more than its interval."""
    found = bits_per_byte(samples, base, tuned)
    return {**found, "text_sha256": digest, "worse": found["difference"][1] > 0}


def choice_accuracy(questions: Sequence[Question], samples: Sequence[Sample], base: Losses, tuned: Losses) -> dict:
    """Accuracy of the likeliest choice, and of the likeliest per byte, each with its interval over questions."""
    sizes = [sample.bytes for sample in samples]
    hits = [choices.hits(questions, _sums(losses).tolist(), sizes) for losses in (base, tuned)]
    ones = np.ones(len(questions))
    found = [plain(ratio(np.array(one, float), np.array(two, float), ones)) for one, two in zip(*hits, strict=True)]
    return {"questions": len(questions), "accuracy": found[0], "accuracy_per_byte": found[1]}


def plain(paired: Paired) -> dict[str, list[float]]:
    """[value, low, high] of base, tuned and difference."""
    return {name: [interval.value, interval.low, interval.high] for name, interval in vars(paired).items()}


def _sums(losses: Iterable[Sequence[float]]) -> Any:
    return np.array([sum(each) for each in losses])
