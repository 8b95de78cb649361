"""Tiled causal attention for a CPU, in the memory-efficient form of Rabe and Staats 2021 (arXiv:2112.05682).

torch 2.0.1 has such a kernel for a GPU only: on a CPU it computes the S x S scores, masks half of them and keeps them
for the backward pass. Here a tile of queries meets only the keys up to its own end, which is half the work. The forward
pass keeps one log-sum-exp per query, as FlashAttention does (Dao et al. 2022, arXiv:2205.14135), and the backward pass
computes the scores again, so nothing of size S x S is ever kept. Needs torch alone.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

TILE = 128  # queries: their scores over a thousand keys are a few MB and fit the caches
# e^-80 = 2e-35 next to a largest weight of 1 changes no sum in fp32. Where the result would be subnormal or zero, MKL's
# exp, several times as fast as torch's softmax, takes up to 60 times as long.
LEAST = -80.0


class _TiledCausal(torch.autograd.Function):
    """Queries [heads, n, d], keys and values [kv_heads, n, d]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values, scaled = _repeat(key, query), _repeat(value, query), query * query.shape[-1] ** -0.5
        output, log_sum_exp = torch.empty_like(query), query.new_empty(*query.shape[:2], 1)
        buffer = _buffer(query)
        for rows, seen in _tiles(query.shape[1]):
            scores = _scores(scaled[:, rows], keys[:, seen], buffer)
            top = scores.amax(dim=-1, keepdim=True)
            weights = _exp(scores.sub_(top))
            total = weights.sum(dim=-1, keepdim=True)
            torch.div(torch.bmm(weights, values[:, seen]), total, out=output[:, rows])
            torch.add(total.log_(), top, out=log_sum_exp[:, rows])
        ctx.save_for_backward(query, key, value, log_sum_exp)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, log_sum_exp = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        keys, values, scaled = _repeat(key, query), _repeat(value, query), query * scale
        by_query, by_keys, by_values = torch.empty_like(query), torch.zeros_like(keys), torch.zeros_like(values)
        buffer, other_buffer = _buffer(query), _buffer(query)
        for rows, seen in _tiles(query.shape[1]):
            grad = grads[0][:, rows]
            weights = _exp(_scores(scaled[:, rows], keys[:, seen], buffer).sub_(log_sum_exp[:, rows]))
            # not baddbmm_, which multiplies one head at a time into a slice
            by_values[:, seen] += torch.bmm(weights.transpose(1, 2), grad)
            by_weights = _matmul(grad, values[:, seen].transpose(1, 2), other_buffer)
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype, grad_input=by_weights)
            by_query[:, rows] = torch.bmm(by_scores, keys[:, seen])
            by_keys[:, seen] += torch.bmm(by_scores.transpose(1, 2), scaled[:, rows])
        by_key, by_value = (each.unflatten(0, (len(key), -1)).sum(1) for each in (by_keys, by_values))
        return by_query.mul_(scale), by_key, by_value


def tiled_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query key^T / sqrt(d)) value, each query over the keys up to its own position.

    query [1, heads, n, d], key and value [1, kv_heads, n, d], of one dtype -> [1, heads, n, d]; what
    F.scaled_dot_product_attention(..., is_causal=True) gives for repeated keys and values.
    """
    return _TiledCausal.apply(query[0], key[0], value[0])[None]


def _repeat(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """States [kv_heads, n, d] as [heads, n, d]: a batch of a few groups leaves some of the CPU's cores idle."""
    groups = len(query) // len(states)
    return states[:, None].expand(-1, groups, -1, -1).reshape(query.shape)


def _tiles(length: int) -> Iterator[tuple[slice, slice]]:
    """(a tile of queries, the keys that they may attend to); the tiles are even: a short one costs as many calls."""
    count = -(-length // TILE)
    for number in range(count):
        end = length * (number + 1) // count
        yield slice(length * number // count, end), slice(0, end)


def _buffer(query: torch.Tensor) -> torch.Tensor:
    """Memory for the scores of any tile: new pages for each would be slow."""
    heads, length, _ = query.shape
    return query.new_empty(heads * min(TILE, length) * length)


def _matmul(one: torch.Tensor, other: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """The batch product [heads, b, k] in `buffer`."""
    shape = (*one.shape[:2], other.shape[2])
    return torch.bmm(one, other, out=buffer[: math.prod(shape)].view(shape))


def _scores(scaled: torch.Tensor, key: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Scores [heads, b, k] of the last b of k positions; -inf for later keys than a query's own."""
    scores = _matmul(scaled, key.transpose(1, 2), buffer)
    _diagonal(scores).masked_fill_(_future(scores), float("-inf"))
    return scores


def _exp(scores: torch.Tensor) -> torch.Tensor:
    """e^scores, in place; 0 for later keys."""
    weights = scores.clamp_(min=LEAST).exp_()
    _diagonal(weights).masked_fill_(_future(weights), 0.0)
    return weights


def _diagonal(scores: torch.Tensor) -> torch.Tensor:
    """The square [heads, b, b] of a tile in which a query meets keys of its own tile."""
    return scores[..., -scores.shape[1] :]


def _future(scores: torch.Tensor) -> torch.Tensor:
    """True [b, b] where a key of the tile is later than the query."""
    rows = scores.shape[1]
    return torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu_(1)
