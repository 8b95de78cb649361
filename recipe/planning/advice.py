"""What to change in a config whose largest step does not fit into GPU memory: the mildest changes that suffice."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from recipe.core.config import Config
from recipe.planning.cards import P100, Card
from recipe.planning.memory import Shape
from recipe.planning.sizing import plan_shape

Change = dict[str, Any]  # dotted key -> new value
PRECISIONS = ("fp32", "fp16", "int8", "nf4")  # in decreasing order of memory
LEAST_RANK, LEAST_LENGTH = 8, 256  # smaller adapters or shorter conversations are never advised


def advise(config: Config, shape: Shape, card: Card = P100) -> str:
    """Up to two alternative changes that each suffice; else the fewest and mildest that suffice together."""
    kinds = list(list_changes(config))
    for allowed in (kinds[:-1], kinds):  # shorter conversations only if nothing else suffices
        alone = [next((change for change in options if fits(config, shape, change, card)), None) for options in allowed]
        if enough := [format_change(change) for change in alone if change]:
            return f"set {', or '.join(enough[:2])}"
        if together := combine(config, shape, allowed, card):
            return f"set {format_change(together)}"
    return "no setting makes it fit: use a smaller base"


def list_changes(config: Config) -> Iterator[list[Change]]:
    """The changes that save memory: kinds from mildest to strongest (shorter conversations), each from its mildest."""
    train, length = config.train, config.corpus.max_length
    yield [] if train.recompute in ("auto", -1) else [{"train.recompute": "auto"}]
    budgets = halvings(train.micro_batch_tokens, length + 1) + [length] * (length < train.micro_batch_tokens)
    yield [{"train.micro_batch_tokens": budget} for budget in budgets]
    narrower = PRECISIONS[PRECISIONS.index(config.base.precision) + 1 :]
    # only int8 can accumulate in fp16
    half = {"train.matmul_accumulation": "fp32"} if train.matmul_accumulation == "fp16" else {}
    yield [{"base.precision": precision} | (half if precision != "int8" else {}) for precision in narrower]
    yield [{"lora.rank": rank} for rank in halvings(config.lora.rank, LEAST_RANK)]
    yield [] if train.optimizer == "adamw8bit" else [{"train.optimizer": "adamw8bit"}]
    yield [{"corpus.max_length": short, "train.micro_batch_tokens": short} for short in halvings(length, LEAST_LENGTH)]


def halvings(value: int, least: int) -> list[int]:
    """value / 2, value / 4, ... down to `least`, rounded down."""
    out = []
    while value // 2 >= least:
        value //= 2
        out.append(value)
    return out


def combine(config: Config, shape: Shape, kinds: list[list[Change]], card: Card = P100) -> Change | None:
    """One change that suffices: the strongest of every kind, then weakened kind by kind as far as it still fits."""
    chosen = [options[-1] if options else {} for options in kinds]
    if not fits(config, shape, merge(chosen), card):
        return None
    for kind, options in reversed(list(enumerate(kinds))):  # the strongest kind is weakened first
        for milder in ({}, *options):
            trial = [*chosen[:kind], milder, *chosen[kind + 1 :]]
            if fits(config, shape, merge(trial), card):
                chosen = trial
                break
    return merge(chosen)


def merge(chosen: list[Change]) -> Change:
    return {key: value for change in chosen for key, value in change.items()}


def fits(config: Config, shape: Shape, change: Change, card: Card = P100) -> bool:
    """Whether the largest step of the changed config fits the GPU."""
    return plan_shape(apply_change(config, change), shape, card.budget, half=card.half).fits


def apply_change(config: Config, change: Change) -> Config:
    """`config` with some fields set to other values."""
    for dotted, value in change.items():
        section, _, key = dotted.partition(".")
        replaced = dataclasses.replace(getattr(config, section), **{key: value})
        config = dataclasses.replace(config, **{section: replaced})
    return config


def format_change(change: Change) -> str:
    """The change in the syntax of --set and of a config file."""
    fields = " and ".join(f"{key} = {json.dumps(value)}" for key, value in change.items())
    return f"{fields} (and run recipe.corpus again)" if "corpus.max_length" in change else fields
