"""Activation checkpointing for the first n decoder layers (Chen et al. 2016, arXiv:1604.06174).

Checkpointing every layer adds a third to the FLOPs, and each layer that keeps its activations saves its share of that.
So the number of layers is a setting. transformers' own switch is all or nothing, and drops the keyword arguments that
carry the lengths of a pack to the attention. Needs torch alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class _Recomputed:
    """The forward of a layer: keeps its arguments only, and runs again in the backward pass."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # the reentrant variant fails if the input needs no gradient (frozen embedding), and drops kwargs
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


def recompute_first(layers: Sequence[nn.Module] | nn.ModuleList, count: int) -> None:
    """Use activation checkpointing in the first `count` of `layers`, and in no other. Replaces an earlier choice.

    Dropout draws the same numbers in both passes. Raises ValueError if there are fewer layers.
    """
    if not 0 <= count <= len(layers):
        raise ValueError(f"asked to recompute {count} of {len(layers)} layers, expected 0 to {len(layers)}")
    for number, layer in enumerate(layers):
        if _is_recomputed(layer):
            del layer.forward
        if number < count:
            layer.forward = _Recomputed(layer.forward)


def count_recomputed(layers: nn.ModuleList) -> int:
    """The number of layers with activation checkpointing."""
    return sum(map(_is_recomputed, layers))


def _is_recomputed(layer: nn.Module) -> bool:
    return isinstance(layer.__dict__.get("forward"), _Recomputed)
