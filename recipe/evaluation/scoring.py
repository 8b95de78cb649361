"""Scores of base and tuned model side by side, as plain values with intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from recipe.core.files import digest
from recipe.core.text import progress
from recipe.evaluation import choices
from recipe.evaluation.choices import Question
from recipe.evaluation.intervals import Paired, ratio
from recipe.evaluation.parts import Parts
from recipe.evaluation.texts import Sample
from recipe.model.likelihood import pack_token_nll

MODELS = ("base", "tuned")
Losses = list[npt.NDArray[np.float32]]  # for each sample the negative log-likelihood, in nats, of its trained tokens
Bounds = dict[str, list[float]]  # [value, low, high] of base, tuned and difference


class Packs(Protocol):
    """Packs of samples in order, as `training.dataset.PackedDataset`; `packs` are the samples' numbers."""

    packs: list[list[int]]

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


def score(model: Any, name: str, data: Packs, what: str, parts: Parts) -> Losses:
    """The losses of every sample in `data`, one pack in memory at a time; packs that `parts` holds are not computed.

    `name` tells base from tuned.
    """
    was_training = model.training
    model.eval()
    out: Losses = [np.empty(0, np.float32)] * (1 + max(max(numbers) for numbers in data.packs))
    for index, numbers in enumerate(progress(data.packs, desc=f"{name}: {what}", unit=" packs")):
        pack = data[index]
        found = parts.get([name, _describe(pack)], lambda pack=pack: pack_token_nll(model, pack))  # type: ignore[misc]
        for number, losses in zip(numbers, found, strict=True):
            out[number] = np.array(losses, np.float32)
    model.train(was_training)
    return out


def _describe(pack: Mapping[str, Any]) -> str:
    """A digest of everything in a pack that its losses follow from."""
    tensors = [pack[key].tolist() for key in ("input_ids", "position_ids", "labels")]
    return digest([*tensors, pack["lengths"], pack["prefix"]])


def bits_per_byte(samples: Sequence[Sample], base: Losses, tuned: Losses) -> Bounds:
    """[value, low, high] of base, tuned and difference, drawn by samples."""
    sizes = np.array([sample.bytes * math.log(2) for sample in samples])
    return plain(ratio(sums(base), sums(tuned), sizes))


def text_scores(samples: Sequence[Sample], base: Losses, tuned: Losses) -> dict[str, Any]:
    """Bits per byte, and the loss in nats per token, whose exponential is the perplexity."""
    counts = np.array([len(losses) for losses in base], float)
    loss = plain(ratio(sums(base), sums(tuned), counts))
    return {"samples": len(samples), "loss": loss, "bits_per_byte": bits_per_byte(samples, base, tuned)}


def forgetting(samples: Sequence[Sample], base: Losses, tuned: Losses, digest: str) -> dict[str, Any]:
    """Bits per byte on the probe's text, and whether the tuned model is worse there by more than its interval."""
    found = bits_per_byte(samples, base, tuned)
    return {**found, "text_sha256": digest, "worse": found["difference"][1] > 0}


def choice_accuracy(questions: Sequence[Question], samples: Sequence[Sample], base: Losses, tuned: Losses) -> dict:
    """Accuracy of the likeliest choice, and of the likeliest per byte, each with its interval over questions."""
    sizes = [sample.bytes for sample in samples]
    hits = [choices.hits(questions, sums(losses).tolist(), sizes) for losses in (base, tuned)]
    found = [share(one, two) for one, two in zip(*hits, strict=True)]
    return {"questions": len(questions), "accuracy": found[0], "accuracy_per_byte": found[1]}


def share(base: Sequence[float], tuned: Sequence[float]) -> Bounds:
    """The share of questions that base and tuned got right (1 or 0 each), with intervals over questions."""
    return plain(ratio(np.array(base, float), np.array(tuned, float), np.ones(len(base))))


def plain(paired: Paired) -> Bounds:
    """[value, low, high] of base, tuned and difference."""
    return {name: [interval.value, interval.low, interval.high] for name, interval in vars(paired).items()}


def sums(losses: Iterable[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """The nats of each sample."""
    return np.array([each.sum(dtype=np.float64) for each in losses])
