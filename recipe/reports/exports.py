"""The table of exports.json: the loss of a run's model in every format that it leaves in."""

import math
from collections.abc import Mapping
from typing import Any

HEADING = ("format", "size", "validation loss", "perplexity", "difference to the model as trained")


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A heading, then a row for each format; the intervals are in brackets."""
    return [list(HEADING), *(_row(model) for model in result["models"])]


def explain(result: Mapping[str, Any]) -> str:
    """What was compared, and which format it speaks for."""
    used, of = result["provenance"]["samples"], result["provenance"]["of"]
    text = (
        f"Read from the written files, where there is a size; {used} of {of} validation samples. 95 % intervals in "
        f"brackets, by the paired bootstrap over {result['conversations']} conversations."
    )
    if name := result["recommended"]:
        text += f" The smallest one that is as good as the model as trained: {name}."
    return text


def _row(model: Mapping[str, Any]) -> list[str]:
    loss, difference = model["loss"], model["difference"]
    perplexity = math.exp(loss[0])
    size = "" if model["bytes"] is None else f"{model['bytes'] / 1e6:,.1f} MB"
    change = f"{difference[0]:+.4f} [{difference[1]:+.4f}, {difference[2]:+.4f}]" if any(difference) else ""
    return [model["name"], size, f"{loss[0]:.4f}", f"{perplexity:.3f}", change]
