"""Tiled causal attention for a CPU, in the memory-efficient form of Rabe and Staats 2021 (arXiv:2112.05682).

torch 2.0.1 has such a kernel for a GPU only: on a CPU it computes the S x S scores, masks half of them and keeps them
for the backward pass. Here a tile of queries meets only the keys up to its own end, which is half the work, and the
backward pass computes the scores again, so nothing of size S x S is ever kept. Needs torch alone.
"""

from collections.abc import Iterator
from typing import Any

import torch

TILE = 64  # queries: their scores over a thousand keys are a few MB and fit the caches


class _TiledCausal(torch.autograd.Function):
    """Queries [heads, n, d], keys and values [kv_heads, n, d]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        keys, values = _repeat(query, key, value)
        output = torch.empty_like(query)
        for rows, seen in _tiles(query.shape[1]):
            output[:, rows] = torch.bmm(_weights(query[:, rows], keys[:, seen]), values[:, seen])
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = ctx.saved_tensors
        keys, values = _repeat(query, key, value)
        by_query, by_keys, by_values = torch.empty_like(query), torch.zeros_like(keys), torch.zeros_like(values)
        for rows, seen in _tiles(query.shape[1]):
            grad = grads[0][:, rows]
            weights = _weights(query[:, rows], keys[:, seen])
            by_values[:, seen].baddbmm_(weights.transpose(1, 2), grad)
            by_weights = torch.bmm(grad, values[:, seen].transpose(1, 2))
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            by_query[:, rows] = torch.bmm(by_scores, keys[:, seen])
            by_keys[:, seen].baddbmm_(by_scores.transpose(1, 2), query[:, rows])
        by_key, by_value = (each.unflatten(0, (len(key), -1)).sum(1) for each in (by_keys, by_values))
        scale = query.shape[-1] ** -0.5
        return by_query.mul_(scale), by_key.mul_(scale), by_value


def tiled_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query key^T / sqrt(d)) value, each query over the keys up to its own position.

    query [1, heads, n, d], key and value [1, kv_heads, n, d], of one dtype -> [1, heads, n, d]; what
    F.scaled_dot_product_attention(..., is_causal=True) gives for repeated keys and values.
    """
    return _TiledCausal.apply(query[0], key[0], value[0])[None]


def _repeat(query: torch.Tensor, *states: torch.Tensor) -> list[torch.Tensor]:
    """Each of states [kv_heads, n, d] as [heads, n, d]: a batch of a few groups leaves some of the CPU's cores idle."""
    return [each.repeat_interleave(len(query) // len(each), dim=0) for each in states]


def _tiles(length: int) -> Iterator[tuple[slice, slice]]:
    """(a tile of queries, the keys that they may attend to)"""
    for start in range(0, length, TILE):
        end = min(start + TILE, length)
        yield slice(start, end), slice(0, end)


def _weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Softmax [heads, b, k] of the scores of the last b of k positions."""
    rows = query.shape[1]
    scores = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2))
    future = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu_(1)
    scores[..., -rows:].masked_fill_(future, float("-inf"))
    return scores.softmax(dim=-1)
