"""Does the arithmetic this recipe rests on come out right on this device, and which is faster? Seconds, torch alone."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from recipe.pascal.gemm import matmul
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


@dataclass(frozen=True)
class Race:
    """A frozen layer's two products with fp16 sums (gemm.py) beside torch's with fp32 sums: error, milliseconds."""

    fan_in: int
    fan_out: int
    error: float
    fp16_ms: float
    fp32_ms: float

    @property
    def won(self) -> bool:
        """fp16 sums are right enough, and faster."""
        return self.error <= TOLERANCE[torch.float16] and self.fp16_ms < self.fp32_ms

    def __str__(self) -> str:
        times = f"fp16 sums {self.fp16_ms:.2f} ms, fp32 sums {self.fp32_ms:.2f} ms, error {self.error:.1e}"
        return f"{self.fan_in} to {self.fan_out}: {times}"


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


def gemm(device: torch.device, shapes: Iterable[tuple[int, int]], tokens: int) -> list[Race]:
    """Forward and backward of a layer of each (in, out) on `tokens` rows, in both ways.

    Raises RuntimeError where cuBLAS has no such product or the card no memory.
    """
    return [_race(device, fan_in, fan_out, tokens) for fan_in, fan_out in sorted(shapes)]


def _race(device: torch.device, fan_in: int, fan_out: int, tokens: int) -> Race:
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    weight = (normal(fan_out, fan_in) * 0.02).half()
    x = normal(tokens, fan_in)
    x[:, :8] *= 40  # the outlier channels of real activations
    pairs = [(x.half(), weight.t()), (normal(tokens, fan_out).half(), weight)]
    error = max(_error(*pair) for pair in pairs)
    return Race(fan_in, fan_out, error, _milliseconds(matmul, pairs), _milliseconds(torch.matmul, pairs))


def _error(x: torch.Tensor, weight: torch.Tensor, rows: int = 256) -> float:
    """Of fp16 sums against fp32's, over the first rows, the reference's copies being twice as wide."""
    y, exact = matmul(x[:rows], weight).float(), x[:rows].float().matmul(weight.float())
    return float((y - exact).norm() / exact.norm()) if bool(torch.isfinite(y).all()) else float("inf")


def _milliseconds(way: Function, pairs: list[tuple[torch.Tensor, torch.Tensor]], repeats: int = 7) -> float:
    """The median, after a first time that loads the kernels; the card is waited for."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        for x, weight in pairs:
            way(x, weight)
        if pairs[0][0].is_cuda:
            torch.cuda.synchronize(pairs[0][0].device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) * 1e3


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
