"""Causal attention over packed conversations (document masking) in the only form that needs no S x S matrix on Pascal.

torch 2.0.1 has memory-efficient kernels for sm_60, forward and backward, but uses them only for a call without a mask,
dropout or scale; any other call falls back to S x S matrices. So a pack is cut at its borders and each conversation
gets one plain causal call. That is also the least work: no score across a border is computed and thrown away. The
common prefix, the system prompt, is in the pack once; it is put before the tokens of each conversation for its call
only. On a CPU, for which torch has no such kernel, long conversations use tiled attention. Needs torch alone; the code
that loads the model registers `packed_attention` with transformers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from recipe.pascal.constants import TILED_FROM
from recipe.pascal.tiled_attention import tiled_causal


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lengths: Sequence[int] | None = None,
    prefix: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers' `ALL_ATTENTION_FUNCTIONS` expects it.

    query [rows, heads, q, d], key and value [rows, kv_heads, k, d], after the rotary embedding ->
    ([rows, q, heads, d], None).
    With `lengths` (plain ints, so that no layer waits for the GPU), q = k is a pack of that many conversations, and
    each attends to its own past only; `attention_mask` is not read. All conversations begin with the first `prefix`
    tokens of the pack, which it has once (see training.dataset.PackedDataset): q = sum(lengths) - prefix * (n - 1).
    Without `lengths` this is a prompt or a step of generation, and an additive mask [rows, 1, q, >= k] applies.
    Raises ValueError if lengths and q disagree, or if dropout would force the S x S path.
    """
    query = prescaled(query, scaling)
    if lengths is None:
        heads = query.shape[1]
        return unpacked(query, expanded(key, heads), expanded(value, heads), attention_mask).transpose(1, 2), None
    if dropout:
        raise ValueError(
            f"attention dropout is {dropout}, expected 0: with it torch leaves its memory-efficient kernel"
        )
    own = [length - prefix for length in lengths]
    if not query.shape[2] == key.shape[2] == prefix + sum(own):
        raise ValueError(
            f"a pack of lengths {list(lengths)} with a prefix of {prefix} has {prefix + sum(own)} tokens, found "
            f"{query.shape[2]} queries and {key.shape[2]} keys, expected as many; do not pass packs to generation"
        )
    conversations = zip(*(_split(tensor, prefix, own) for tensor in (query, key, value)), strict=True)
    outputs = [causal(*states).transpose(1, 2) for states in conversations]
    return torch.cat([outputs[0], *(output[:, prefix:] for output in outputs[1:])], dim=1), None


def _split(states: torch.Tensor, prefix: int, own: list[int]) -> list[torch.Tensor]:
    """A pack [rows, heads, n, d] as one tensor per conversation, each with the prefix before its own tokens."""
    # split, not slices: its backward is one concatenation, that of n slices is n gradients of full length
    if not prefix or len(own) == 1:
        return list(states.split([prefix + own[0], *own[1:]], dim=2))
    beginning, *rest = states.split([prefix, *own], dim=2)
    return [torch.cat([beginning, each], dim=2) for each in rest]


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of one conversation, [1, heads, n, d] over keys and values [1, kv_heads, n, d] -> [1, heads, n, d].

    Only a short conversation on a CPU keeps its n x n scores.
    """
    if query.is_cuda or query.shape[2] < TILED_FROM:
        heads = query.shape[1]
        return F.scaled_dot_product_attention(query, expanded(key, heads), expanded(value, heads), is_causal=True)
    return tiled_causal(query, key, value)


def prescaled(query: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """The query multiplied so that torch's fixed scale 1 / sqrt(d) becomes `scaling`: the kernel takes no scale."""
    factor = 1.0 if scaling is None else scaling * math.sqrt(query.shape[-1])
    return query if math.isclose(factor, 1.0, rel_tol=1e-6) else query * factor


def expanded(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Grouped-query keys or values [rows, kv_heads, k, d] -> [rows, heads, k, d]; the kernel has no groups."""
    rows, kv_heads, length, width = states.shape
    if kv_heads == heads:
        return states
    grouped = states[:, :, None].expand(rows, kv_heads, heads // kv_heads, length, width)
    return grouped.reshape(rows, heads, length, width)


def unpacked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of a prompt, or of the next tokens over a cache of k >= q keys -> [rows, heads, q, d]."""
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[..., : k.shape[2]])
    if q.shape[2] not in (1, k.shape[2]):
        raise ValueError(
            f"{q.shape[2]} queries over {k.shape[2]} keys need a mask, found none: torch's causal flag aligns them left"
        )
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
