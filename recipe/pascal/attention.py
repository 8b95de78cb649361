"""Causal attention over conversations laid side by side, in the one form that a Pascal card computes without S x S.

torch 2.0.1 has memory-efficient kernels for sm_60, forward and backward, but takes them only for a call with no mask,
no dropout and no scale of its own; anything else falls back to the S x S matrices. So a pack is cut at its borders and
each conversation gets one plain causal call, which also is all the work there is: nothing across borders is computed
and thrown away. What all of a pack begin with, the system prompt, stands in it once and is put before each one's own
tokens for that call only. A CPU, for which torch has no such kernel, takes a long one in blocks. Needs torch alone;
whoever loads the model registers `packed_attention` with transformers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from recipe.pascal.constants import TILED_FROM
from recipe.pascal.tiled_attention import blocked_causal


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lengths: Sequence[int] | None = None,
    shared: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers' `ALL_ATTENTION_FUNCTIONS` expects it.

    query [rows, heads, q, d], key and value [rows, kv_heads, k, d], rotated already -> ([rows, q, heads, d], None).
    With `lengths` (plain ints, so that no layer waits for the card) q = k is a pack of that many conversations, each of
    which sees its own past only; `attention_mask` says nothing that they do not, and is not read. All begin with the
    pack's first `shared` tokens, fewer than any length, which are there once: q = sum(lengths) less `shared` for
    each but the first. Without lengths, this is a prompt or a step of generation and an additive mask
    [rows, 1, q, >= k], if there is one, holds. Raises ValueError where lengths and q disagree, or where dropout would
    force the S x S path on training.
    """
    query = prescaled(query, scaling)
    if lengths is None:
        heads = query.shape[1]
        return unpacked(query, expanded(key, heads), expanded(value, heads), attention_mask).transpose(1, 2), None
    if dropout:
        raise ValueError(
            f"attention dropout is {dropout}, expected 0: with it torch leaves its memory-efficient kernel"
        )
    own = [length - shared for length in lengths]
    if not query.shape[2] == key.shape[2] == shared + sum(own):
        raise ValueError(
            f"a pack of lengths {list(lengths)} that share {shared} tokens ({shared + sum(own)} in all) met "
            f"{query.shape[2]} queries and {key.shape[2]} keys, expected as many; packs are not for generation"
        )
    conversations = zip(*(_conversations(tensor, shared, own) for tensor in (query, key, value)), strict=True)
    outputs = [causal(*states).transpose(1, 2) for states in conversations]
    return torch.cat([outputs[0], *(output[:, shared:] for output in outputs[1:])], dim=1), None


def _conversations(states: torch.Tensor, shared: int, own: list[int]) -> list[torch.Tensor]:
    """A pack's [rows, heads, n, d] as one tensor a conversation, the shared beginning before each."""
    # split, not slices: its backward is one concatenation, that of n slices is n gradients of full length
    if not shared or len(own) == 1:
        return list(states.split([shared + own[0], *own[1:]], dim=2))
    beginning, *rest = states.split([shared, *own], dim=2)
    return [torch.cat([beginning, part], dim=2) for part in rest]


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One conversation's attention [1, heads, n, d] over keys and values [1, kv_heads, n, d]; n x n is kept nowhere
    but for a short one on a CPU."""
    if query.is_cuda or query.shape[2] < TILED_FROM:
        heads = query.shape[1]
        return F.scaled_dot_product_attention(query, expanded(key, heads), expanded(value, heads), is_causal=True)
    return blocked_causal(query, key, value)


def prescaled(query: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """The query by which torch's own 1 / sqrt(d) amounts to `scaling`: its kernel's gate has no scale argument."""
    factor = 1.0 if scaling is None else scaling * math.sqrt(query.shape[-1])
    return query if math.isclose(factor, 1.0, rel_tol=1e-6) else query * factor


def expanded(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Grouped-query keys or values [rows, kv_heads, k, d] -> [rows, heads, k, d]; the kernel knows no groups."""
    rows, kv_heads, length, width = states.shape
    if kv_heads == heads:
        return states
    grouped = states[:, :, None].expand(rows, kv_heads, heads // kv_heads, length, width)
    return grouped.reshape(rows, heads, length, width)


def unpacked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of a prompt, or of its next tokens over a cache of k >= q keys: [rows, heads, q, d]."""
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[..., : k.shape[2]])
    if q.shape[2] not in (1, k.shape[2]):
        raise ValueError(
            f"{q.shape[2]} queries over {k.shape[2]} keys need a mask: torch's causal flag aligns them left"
        )
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
