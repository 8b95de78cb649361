"""What to change in a config whose largest step does not fit the card: the mildest changes that are enough."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recipe.core.config import Config
from recipe.planning.sizing import P100_BUDGET, recomputed_layers, step_of

if TYPE_CHECKING:
    from recipe.planning.memory import Shape

Change = dict[str, Any]  # fields by dotted key, and what they become
PRECISIONS = ("fp32", "fp16", "int8", "nf4")  # each takes less memory than the one before
LEAST_RANK, LEAST_LENGTH = 8, 256  # below them the adapter, or the conversations, are not what this recipe is for


def advice(config: Config, shape: "Shape") -> str:
    """At most two changes each of which is enough; else the fewest and mildest that are enough together."""
    kinds = list(changes(config))
    for allowed in (kinds[:-1], kinds):  # shorter conversations only where nothing else is enough
        alone = [next((change for change in options if fits(config, shape, change)), None) for options in allowed]
        if enough := [said(change) for change in alone if change]:
            return f"set {', or '.join(enough[:2])}"
        if together := combined(config, shape, allowed):
            return f"set {said(together)}"
    return "no setting of this recipe makes it fit: take a smaller base"


def changes(config: Config) -> Iterator[list[Change]]:
    """What saves memory, kind by kind from the mildest to shorter conversations, each kind from its mildest step."""
    train, length = config.train, config.corpus.max_length
    yield [] if train.recompute in ("auto", -1) else [{"train.recompute": "auto"}]
    budgets = halved(train.micro_batch_tokens, length + 1) + [length] * (length < train.micro_batch_tokens)
    yield [{"train.micro_batch_tokens": budget} for budget in budgets]
    narrower = PRECISIONS[PRECISIONS.index(config.base.precision) + 1 :]
    yield [{"base.precision": precision} for precision in narrower]
    yield [{"lora.rank": rank} for rank in halved(config.lora.rank, LEAST_RANK)]
    yield [] if train.optimizer == "adamw8bit" else [{"train.optimizer": "adamw8bit"}]
    yield [{"corpus.max_length": short, "train.micro_batch_tokens": short} for short in halved(length, LEAST_LENGTH)]


def halved(value: int, least: int) -> list[int]:
    """Half of it, half of that, and so on, none below `least`."""
    out = []
    while value // 2 >= least:
        value //= 2
        out.append(value)
    return out


def combined(config: Config, shape: "Shape", kinds: list[list[Change]]) -> Change | None:
    """One change that is enough, put together from each kind's strongest and then given back where it can be."""
    chosen = [options[-1] if options else {} for options in kinds]
    if not fits(config, shape, merged(chosen)):
        return None
    for kind, options in reversed(list(enumerate(kinds))):  # the hardest to bear is given back first
        for milder in ({}, *options):
            trial = [*chosen[:kind], milder, *chosen[kind + 1 :]]
            if fits(config, shape, merged(trial)):
                chosen = trial
                break
    return merged(chosen)


def merged(chosen: list[Change]) -> Change:
    return {key: value for change in chosen for key, value in change.items()}


def fits(config: Config, shape: "Shape", change: Change) -> bool:
    from recipe.planning.memory import estimate

    changed = changed_config(config, change)
    step = step_of(changed)
    return estimate(shape, step, recomputed_layers(changed, shape, step, P100_BUDGET)).peak <= P100_BUDGET


def changed_config(config: Config, change: Change) -> Config:
    """`config` with some fields set to other values."""
    for dotted, value in change.items():
        section, _, key = dotted.partition(".")
        part = dataclasses.replace(getattr(config, section), **{key: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def said(change: Change) -> str:
    """As --set and a config file take it."""
    fields = " and ".join(f"{key} = {json.dumps(value)}" for key, value in change.items())
    return f"{fields} (and prepare the corpus again)" if "corpus.max_length" in change else fields
