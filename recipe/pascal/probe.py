"""Checks and benchmarks on this device: int8, attention and fp16 accumulation. Takes seconds, needs torch alone."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from recipe.pascal.dtypes import compute_dtype
from recipe.pascal.gemm import matmul
from recipe.pascal.int8 import Int8Linear, dequantize

Function = Callable[..., torch.Tensor]
# Relative error (Frobenius norm) against fp32: rounding of fp16 inputs and result, 2^-11 each, with a margin.
TOLERANCE = {torch.float16: 5e-3, torch.float32: 1e-4}


@dataclass(frozen=True)
class Probe:
    """`error`: the largest of output and input gradients, relative to fp32 on the same device."""

    finite: bool
    error: float
    dtype: torch.dtype

    @property
    def passed(self) -> bool:
        return self.finite and self.error <= TOLERANCE[self.dtype]


@dataclass(frozen=True)
class GemmBenchmark:
    """Forward and backward matmul of a frozen layer: fp16 accumulation (gemm.py) and torch's fp32 accumulation.

    `error` of fp16, relative to fp32; milliseconds for both matmuls.
    """

    fan_in: int
    fan_out: int
    error: float
    fp16_ms: float
    fp32_ms: float

    @property
    def fp16_wins(self) -> bool:
        """fp16 accumulation is faster and within the tolerance."""
        return self.error <= TOLERANCE[torch.float16] and self.fp16_ms < self.fp32_ms

    def __str__(self) -> str:
        times = f"fp16 accumulation {self.fp16_ms:.2f} ms, fp32 {self.fp32_ms:.2f} ms, error {self.error:.1e}"
        return f"{self.fan_in} to {self.fan_out}: {times}"


def int8(device: torch.device, dtype: torch.dtype, tokens: int = 64, width: int = 4096) -> Probe:
    """An int8 layer of the width of a 7B model, forward and backward, on inputs that overflow if scaled last."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator) * 0.02
    layer = Int8Linear(weight.to(device))
    x = 30 * torch.randn(tokens, width, generator=generator)  # outputs near 80; before scaling, beyond 65,504
    x[:, :8] *= 40  # the outlier channels of real activations
    x = x.to(device, dtype)
    exact = dequantize(layer.weight, layer.scale, torch.float32)
    return _compare(layer, lambda y: y.matmul(exact.t()), [x], dtype)


def attention(device: torch.device, dtype: torch.dtype, length: int = 256, heads: int = 8, width: int = 128) -> Probe:
    """A causal attention without a mask, as attention.py calls it, against the plain formula in fp32.

    On a GPU only torch's memory-efficient kernel is allowed. Raises RuntimeError if it does not run there.
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


def benchmark_gemm(device: torch.device, shapes: Iterable[tuple[int, int]], tokens: int) -> list[GemmBenchmark]:
    """fp16 and fp32 accumulation in a layer of each (in, out) with `tokens` rows.

    Raises RuntimeError if cuBLAS refuses the call or the GPU has too little memory.
    """
    return [_benchmark_layer(device, fan_in, fan_out, tokens) for fan_in, fan_out in sorted(shapes)]


@dataclass(frozen=True)
class MatmulRate:
    """TFLOP/s of a layer's forward and backward matmul; fp16 accumulation only where it runs (CUDA)."""

    fan_in: int
    fan_out: int
    fp32_tflops: float
    fp16_tflops: float | None
    fp16_error: float | None


def matmul_rate(device: torch.device, fan_in: int, fan_out: int, tokens: int) -> MatmulRate:
    """The rate of a frozen layer with `tokens` rows, in the device's compute dtype; fp16 with both accumulations."""
    work = 4 * tokens * fan_in * fan_out / 1e9  # of both matmuls, in FLOP per millisecond and TFLOP/s
    dtype = compute_dtype(device)
    if dtype == torch.float16:
        with contextlib.suppress(RuntimeError):  # cuBLAS refuses fp16 accumulation
            found = _benchmark_layer(device, fan_in, fan_out, tokens)
            return MatmulRate(fan_in, fan_out, work / found.fp32_ms, work / found.fp16_ms, found.error)
    weight, x, grad = (
        torch.zeros(shape, dtype=dtype, device=device)
        for shape in ((fan_out, fan_in), (tokens, fan_in), (tokens, fan_out))
    )
    milliseconds = median_milliseconds(torch.matmul, [(x, weight.t()), (grad, weight)])
    return MatmulRate(fan_in, fan_out, work / milliseconds, None, None)


def _benchmark_layer(device: torch.device, fan_in: int, fan_out: int, tokens: int) -> GemmBenchmark:
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    weight = (normal(fan_out, fan_in) * 0.02).half()
    x = normal(tokens, fan_in)
    x[:, :8] *= 40  # the outlier channels of real activations
    pairs = [(x.half(), weight.t()), (normal(tokens, fan_out).half(), weight)]
    error = max(_error(*pair) for pair in pairs)
    times = [median_milliseconds(function, pairs) for function in (matmul, torch.matmul)]
    return GemmBenchmark(fan_in, fan_out, error, *times)


def _error(x: torch.Tensor, weight: torch.Tensor, rows: int = 256) -> float:
    """Relative error of fp16 accumulation over the first rows: the fp32 reference needs twice the memory."""
    y, exact = matmul(x[:rows], weight).float(), x[:rows].float().matmul(weight.float())
    return float((y - exact).norm() / exact.norm()) if bool(torch.isfinite(y).all()) else float("inf")


def median_milliseconds(function: Function, pairs: list[tuple[torch.Tensor, torch.Tensor]], repeats: int = 7) -> float:
    """Median time of `function` on all pairs, without a first run that loads the kernels. Waits for the GPU."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        for x, weight in pairs:
            function(x, weight)
        if pairs[0][0].is_cuda:
            torch.cuda.synchronize(pairs[0][0].device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) * 1e3


def _compare(function: Function, reference: Function, inputs: list[torch.Tensor], dtype: torch.dtype) -> Probe:
    """Output and input gradients of `function`, in its dtype, against those of `reference` in fp32."""
    low = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    high = [tensor.detach().float().requires_grad_() for tensor in inputs]
    y, expected = function(*low), reference(*high)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype)
    y.backward(upstream)
    expected.backward(upstream.float())
    pairs: list[Any] = [(y, expected)]
    pairs += [(one.grad, two.grad) for one, two in zip(low, high, strict=True)]
    finite = all(bool(torch.isfinite(one).all()) for one, _ in pairs)
    error = max(float((one.float() - two).norm() / two.norm()) for one, two in pairs) if finite else float("inf")
    return Probe(finite, error, dtype)
