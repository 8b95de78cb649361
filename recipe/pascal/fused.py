"""A LLaMA layer's elementwise parts, each keeping one copy of what its backward pass needs and no more.

Autograd keeps what every single operation read: of a norm the input in fp32 twice, of the MLP gate, silu and product.
Written as one function, a norm keeps its input as it came and one number a row, and the MLP its two factors: 40 % less
of a 7B layer's activations, so that fewer layers, or none, must be recomputed beside the weights. On a CPU it is
time, too: fewer passes over memory. Norms and MLPs have transformers' values to the bit. Needs torch alone.
"""

from collections.abc import Iterable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


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
        return _turned(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def _turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair (x, y) of a head's two halves to (x cos - y sin, y cos + x sin)."""
    half = states.shape[-1] // 2
    turned = states * cos
    turned[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return turned


def rotated(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as transformers' `apply_rotary_pos_emb` has it.

    query and key [rows, heads, n, d], cos and sin [rows, n, d] whose halves along d are equal.
    """
    cos, sin = cos[:, None], sin[:, None]
    return _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., d] over its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467), in fp32, times a frozen weight.

    The result has x's dtype. Raises ValueError where the weight wants a gradient: it gets none.
    """
    if weight.requires_grad:
        raise ValueError("a norm's weight requires a gradient, expected a frozen one: rms_norm computes none for it")
    return _RmsNorm.apply(x, weight, eps)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202), [..., d] each."""
    return _SwiGlu.apply(gate, up)


def slim(norms: Iterable[nn.Module], mlps: Iterable[nn.Module], attentions: Iterable[nn.Module]) -> None:
    """Let transformers' LlamaRMSNorm, LlamaMLP and LlamaAttention modules compute by the functions above, in place.

    These modules alone: whoever else uses transformers in this process gets its own functions.
    """
    for norm in norms:
        norm.forward = partial(_norm_forward, norm)
    for mlp in mlps:
        mlp.forward = partial(_mlp_forward, mlp)
    for attention in attentions:
        attention.forward = partial(_finding(type(attention).forward, apply_rotary_pos_emb=rotated), attention)


def _finding(function: Any, **names: Any) -> FunctionType:
    """`function` of another module, that finds these objects where it looks for those names of its module."""
    found = {**function.__globals__, **names}
    copy = FunctionType(function.__code__, found, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _norm_forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def _mlp_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    return mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
