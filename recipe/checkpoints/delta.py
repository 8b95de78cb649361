"""Delta weights: tuned minus base, as Vicuna v0 and v1.1 were published, without LLaMA's own weights in them."""

import dataclasses
from collections.abc import Callable

import torch

from recipe.checkpoints import llama
from recipe.checkpoints.source import LazyTensor, Source
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WITH_ROWS = (llama.EMBEDDING, llama.HEAD)  # a tuned model may have more tokens than its base


def apply(base: Source, delta: Source) -> Source:
    """base + delta, tensor by tensor as they are read; config and tokenizer are those of the delta.

    The sum is computed in fp32. Tokens that the base lacks count as zeros, as in FastChat's apply_delta.
    Raises RecipeError: a tensor that only one of them has, other shapes.
    """
    return _combine(base, delta, "delta", lambda one, two: one + two)


def make(base: Source, tuned: Source) -> Source:
    """tuned - base, the inverse of `apply` up to the rounding of the stored dtype."""
    return _combine(base, tuned, "tuned model", lambda one, two: two - one)


def _combine(base: Source, other: Source, name: str, combine: Combine) -> Source:
    if odd := base.tensors.keys() ^ other.tensors.keys():
        raise RecipeError(f"only one of base and {name} has {snippet(min(odd))}: they do not belong together")
    tensors = {key: _combined(base.tensors[key], tensor, name, combine) for key, tensor in other.tensors.items()}
    return dataclasses.replace(
        other, kind=f"{base.kind} and {other.kind}", tensors=tensors, files=(*base.files, *other.files)
    )


def _combined(base: LazyTensor, other: LazyTensor, name: str, combine: Combine) -> LazyTensor:
    extra = other.shape[0] - base.shape[0] if other.name in WITH_ROWS else 0
    if extra < 0 or (base.shape[0] + extra, *base.shape[1:]) != other.shape:
        raise RecipeError(
            f"{other.name} is {list(base.shape)} in the base and {list(other.shape)} in the {name}: "
            "they do not belong together"
        )

    def read() -> torch.Tensor:
        weight = base.read().float()
        if extra:
            weight = torch.cat([weight, torch.zeros(extra, *base.shape[1:])])
        return combine(weight, other.read().float())

    return LazyTensor(other.name, other.shape, torch.float32, read)
