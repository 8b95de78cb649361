"""Does the arithmetic this recipe rests on come out right on this device? Two probes, a second each, torch alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from recipe.pascal.int8 import Int8Linear, dequantize

Function = Callable[..., torch.Tensor]
# Relative error (Frobenius norm) against fp32 that fp16 inputs and a fp16 result explain: 2^-11 each, and room.
TOLERANCE = {torch.float16: 5e-3, torch.float32: 1e-4}


@dataclass(frozen=True)
class Probe:
    """`error` is the larger of forward's and backward's, relative to fp32 on the same device."""

    finite: bool
    error: float
    dtype: torch.dtype

    @property
    def passed(self) -> bool:
        return self.finite and self.error <= TOLERANCE[self.dtype]


def int8(device: torch.device, dtype: torch.dtype, tokens: int = 64, width: int = 4096) -> Probe:
    """A frozen int8 layer of a 7B's width, forward and backward, on inputs that overflow a scale-last product."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator) * 0.02
    layer = Int8Linear(weight.to(device))
    x = 30 * torch.randn(tokens, width, generator=generator)  # outputs near 80, their codes' sums beyond 65,504
    x[:, :8] *= 40  # the outlier channels of real activations
    x = x.to(device, dtype)
    exact = dequantize(layer.weight, layer.scale, torch.float32)
    return _compare(layer, lambda y: y.matmul(exact.t()), [x], dtype)


def attention(device: torch.device, dtype: torch.dtype, length: int = 256, heads: int = 8, width: int = 128) -> Probe:
    """One causal attention without a mask, as attention.py calls it, against the plain formula in fp32.

    On a card torch may take its memory-efficient kernel alone: RuntimeError where that does not run there.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, width, generator=generator).to(device, dtype) for _ in range(3))
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q.matmul(k.transpose(2, 3)) / width**0.5
        return scores.masked_fill(future, float("-inf")).softmax(dim=-1).matmul(v)

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=not q.is_cuda, enable_mem_efficient=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return _compare(fused, plain, [query, key, value], dtype)


def _compare(ours: Function, reference: Function, inputs: list[torch.Tensor], dtype: torch.dtype) -> Probe:
    """Output and input gradients of two functions of the same numbers, the second in fp32."""
    low = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    high = [tensor.detach().float().requires_grad_() for tensor in inputs]
    y, expected = ours(*low), reference(*high)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype)
    y.backward(upstream)
    expected.backward(upstream.float())
    pairs: list[Any] = [(y, expected)]
    pairs += [(one.grad, two.grad) for one, two in zip(low, high, strict=True)]
    finite = all(bool(torch.isfinite(one).all()) for one, _ in pairs)
    error = max(float((one.float() - two).norm() / two.norm()) for one, two in pairs) if finite else float("inf")
    return Probe(finite, error, dtype)
