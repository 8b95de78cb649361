"""A base and an adapter as one model: W + BA, tensor by tensor."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from recipe.checkpoints import safetensors
from recipe.checkpoints.adapter import Delta
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.core.text import progress


def write_merged(base: Path, deltas: Mapping[str, Delta], output: Path) -> None:
    """Write the weights of `base` to `output` with W + BA in place of W, in the same shards and dtypes.

    Each sum is computed in fp32, with one tensor in memory. Raises RecipeError: a layer that the base lacks or that has
    another shape there, a sum that its dtype cannot hold.
    """
    shards = [safetensors.library_order(shard.values()) for shard in safetensors.open_shards(base)]
    _check_fit(base, deltas, {tensor.name: tensor for shard in shards for tensor in shard})
    shards = [[merged_tensor(tensor, deltas.get(tensor.name)) for tensor in shard] for shard in shards]
    total = sum(safetensors.size(shard, None) for shard in shards)
    with progress(total=total, unit="B", unit_scale=True, desc="merge") as bar:
        safetensors.write(output, shards, None, bar.update)


def merged_tensor(weight: LazyTensor, delta: Delta | None) -> LazyTensor:
    """W + BA once it is read. Raises RecipeError then, if the dtype of W cannot hold a sum."""
    if delta is None:
        return weight

    def read() -> torch.Tensor:
        b, a = delta
        merged = (weight.read().float() + b @ a).to(weight.dtype)
        if not merged.isfinite().all():
            raise RecipeError(
                f"{weight.name} overflows fp16 once merged: convert the base with --dtype fp32 and merge again"
            )
        return merged

    return dataclasses.replace(weight, read=read)


def _check_fit(base: Path, deltas: Mapping[str, Delta], weights: Mapping[str, LazyTensor]) -> None:
    for name, (b, a) in deltas.items():
        if name not in weights:
            raise RecipeError(f"the adapter has a layer {name} that {base} lacks: it belongs to another base")
        if weights[name].shape != (b.shape[0], a.shape[1]):
            raise RecipeError(
                f"the adapter's {name} is {b.shape[0]} x {a.shape[1]}, that of {base} is "
                f"{' x '.join(map(str, weights[name].shape))}: it belongs to another base"
            )
