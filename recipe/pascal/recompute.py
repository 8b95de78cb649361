"""Recompute the activations of as many decoder layers as memory asks for, and of no more.

Checkpointing every layer costs a third of the FLOPs. Each layer that keeps its activations saves its share of that, so
the number is a choice. transformers' own switch knows all or nothing, and drops the extra keyword arguments by which a
pack's lengths reach the attention. Needs torch alone.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class _Recomputed:
    """A layer's forward that keeps its input and its arguments, and runs again in backward."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # the reentrant kind finds no gradient where the input has none, as over a frozen embedding, and drops kwargs
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


def recompute_first(layers: nn.ModuleList, count: int) -> None:
    """Let the first `count` of `layers` recompute their activations in backward, the others keep theirs.

    -1 is all of them. What an earlier call chose is undone. Dropout draws the same numbers both times. Raises
    ValueError where there are fewer layers.
    """
    if not -1 <= count <= len(layers):
        raise ValueError(f"asked to recompute {count} of {len(layers)} layers, expected -1 (all) to {len(layers)}")
    count = len(layers) if count == -1 else count
    for number, layer in enumerate(layers):
        if isinstance(layer.__dict__.get("forward"), _Recomputed):
            del layer.forward
        if number < count:
            layer.forward = _Recomputed(layer.forward)
