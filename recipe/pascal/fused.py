"""Fused elementwise operations of a LLaMA layer that keep only what their backward pass needs.

Autograd keeps the inputs of every operation: for a norm its input in fp32 twice, for the MLP gate, silu and product.
As one function, a norm keeps its input in its own dtype and one number per row, and the MLP its two factors. That is
40 % less of a 7B layer's activations, so fewer layers need activation checkpointing, or none. On a CPU it also saves
time: fewer passes over memory. Norms and MLPs equal those of transformers bit for bit where no adapter is on them.
Needs torch alone.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from recipe.pascal.attention import packed_attention
from recipe.pascal.lora import project


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        grad = (grads[0] * weight).float()
        along = (grad * normed).mean(-1, keepdim=True)
        return grad.addcmul(normed, along, value=-1).mul_(inverse).to(x.dtype), None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        by_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return by_gate, F.silu(gate).mul_(grads[0])


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(x cos - y sin, y cos + x sin) for each pair (x, y) of the two halves of a head."""
    half = states.shape[-1] // 2
    rotated = states * cos
    rotated[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return rotated


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as in transformers' `apply_rotary_pos_emb`.

    query and key [rows, heads, n, d], cos and sin [rows, n, d] with equal halves along d.
    """
    cos, sin = cos[:, None], sin[:, None]
    return _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., d] over its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467), in fp32, times a frozen weight.

    The result has the dtype of x. Raises ValueError if the weight requires a gradient.
    """
    if weight.requires_grad:
        raise ValueError("a norm's weight requires a gradient, expected a frozen one: rms_norm computes none for it")
    return _RmsNorm.apply(x, weight, eps)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202), [..., d] each."""
    return _SwiGlu.apply(gate, up)


def fuse_layers(norms: Iterable[nn.Module], mlps: Iterable[nn.Module], attentions: Iterable[nn.Module]) -> None:
    """Use the functions above in these LlamaRMSNorm, LlamaMLP and LlamaAttention modules of transformers, in place.

    Adapters on the linear layers of one input are computed together (lora.py). Only these modules change; transformers
    itself is not patched. The attentions are for training: they take packs and no cache.
    """
    for norm in norms:
        norm.forward = partial(_norm_forward, norm)
    for mlp in mlps:
        mlp.forward = partial(_mlp_forward, mlp)
    for attention in attentions:
        attention.forward = partial(_attention_forward, attention)


def _norm_forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def _mlp_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    return project(swiglu(*project(x, mlp.gate_proj, mlp.up_proj)), mlp.down_proj)[0]


def _attention_forward(
    attention: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    past_key_value: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """LlamaAttention.forward (transformers 4.49) for a pack: hidden_states [rows, n, hidden], no cache."""
    if past_key_value is not None:
        raise ValueError("found a cache of keys and values, expected none: a model prepared for training takes packs")
    rows, tokens, _ = hidden_states.shape
    states = project(hidden_states, attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (state.view(rows, tokens, -1, attention.head_dim).transpose(1, 2) for state in states)
    query, key = apply_rotary(query, key, *position_embeddings)
    heads, _ = packed_attention(attention, query, key, value, attention_mask, attention.scaling, **kwargs)
    return project(heads.reshape(rows, tokens, -1), attention.o_proj)[0], None
