"""Two runs in words: in which settings they differ, and whether their losses differ by more than chance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.manifest import differences
from recipe.core.run import Run
from recipe.core.text import snippet
from recipe.reports.run_view import read_evaluation

Losses = dict[str, tuple[int, float]]  # conversation -> trained tokens, nats of the tuned model


def explain(first: Run, second: Run, difference: Sequence[float] | None) -> str:
    """The settings that differ, then the losses of `first` and `second`.

    `difference`: [value, low, high] of the loss of `second` minus that of `first` on the same conversations; None where
    there is none, and the intervals of the two are compared.
    """
    changed = list(differences(configs.hashed(first.config()), configs.hashed(second.config())))
    shown = "; ".join(snippet(line, 200) for line in changed)
    settings = f"Settings that differ: {shown}." if changed else "All settings are the same."
    losses = [read_evaluation(run).get("intervals", {}).get("loss", {}).get("tuned") for run in (first, second)]
    if not all(losses):
        return f"{settings} One of the runs has no loss with an interval, so the losses cannot be compared."
    values = f"The tuned losses are {losses[0][0]:.3f} and {losses[1][0]:.3f}"
    return f"{settings} {values}: {_paired(difference) if difference else _apart(*losses)}"


def _paired(difference: Sequence[float]) -> str:
    value, low, high = difference
    far = f"{value:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, paired over the same conversations)"
    if low <= 0 <= high:
        return f"a difference of {far}, which is within its interval, so it may be chance."
    better = "second" if value < 0 else "first"
    return (
        f"a difference of {far}, which is larger than its interval: the {better} run is better on this validation set."
    )


def _apart(one: Sequence[float], two: Sequence[float]) -> str:
    other = "they were measured on different conversations, so their intervals are compared"
    if one[2] < two[1] or two[2] < one[1]:
        return f"{other}: they do not overlap, so the difference is larger than the intervals."
    return f"{other}: they overlap, so the difference is within the intervals and may be chance."


def read_losses(run: Run) -> Losses:
    """The losses of each validation conversation; empty if the run was not evaluated."""
    if not run.eval_losses.is_file():
        return {}
    run.check_recorded(run.eval_losses.name)
    rows = [json.loads(line) for line in Path(run.eval_losses).read_text(encoding="utf-8").splitlines()]
    return {row["id"]: (row["tokens"], row["tuned"]) for row in rows}


def shared_losses(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    """(tokens, nats of one, nats of two) of each conversation, if both have the same conversations and tokens."""
    if one.keys() != two.keys() or any(one[name][0] != two[name][0] for name in one):
        return []
    return [(one[name][0], one[name][1], two[name][1]) for name in one]
