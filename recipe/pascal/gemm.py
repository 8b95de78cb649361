"""A split-K matmul that accumulates in fp16: the only way to the double rate of a P100, with a bounded error.

torch asks cuBLAS to accumulate fp16 products in fp32. A P100 does that at its fp32 rate, and only CUBLAS_COMPUTE_16F at
twice that rate (data sheet: 18.7 TFLOP/s; not yet measured here). fp16 accumulation rounds after every addition, so K
is split: fp16 inside a chunk (a strided batch, one partial product per chunk), fp32 across chunks.

Relative error against the exact product (emulated: tests/pascal/test_gemm.py); rounding the result alone costs 2e-4:

    chunk                                                            256     512     1024    no split
    normal data with outlier channels, K = 4096                      2.4e-3  3.4e-3  4.5e-3  9.4e-3
    the same, K = 11008                                              2.3e-3  3.2e-3  4.5e-3  1.4e-2
    SmolLM2-135M on real text, K = 192 to 1536, median of 70         2.2e-3  3.1e-3  3.5e-3  3.5e-3
    maximum of 35 layers, forward and backward                       3.0e-3  4.6e-3  5.0e-3  6.9e-3

Gradients need the loss scale of fp16 training: unscaled gradients are subnormal, and then no chunk is small enough.
Needs torch alone.
"""

import ctypes
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipe.pascal.constants import GEMM_ROWS, SPLIT_K
from recipe.pascal.int8 import Int8Linear

# cublasOperation_t, cublasComputeType_t, cublasGemmAlgo_t of cublas_api.h, cudaDataType of library_types.h
OP_N, OP_T = 0, 1
COMPUTE_16F = 64
GEMM_DEFAULT = -1
R_16F = 2
ALLOC_FAILED = 3  # cublasStatus_t
ONE, ZERO = ctypes.c_uint16(0x3C00), ctypes.c_uint16(0)  # alpha and beta have the accumulation dtype

_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_matrix = (_pointer, _int, _int, _long)  # address, type, leading dimension, stride within the batch
# cublasStatus_t cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A.., B.., beta, C.., batchCount,
# computeType, algo)
SIGNATURE = ctypes.CFUNCTYPE(
    _int, _pointer, *[_int] * 5, _pointer, *_matrix, *_matrix, _pointer, *_matrix, _int, _int, _int
)


def matmul(x: torch.Tensor, weight: torch.Tensor, chunk: int = SPLIT_K) -> torch.Tensor:
    """x [..., K] times weight [K, N] -> [..., N], all fp16 on a GPU; not tracked by autograd.

    `weight` is row-major or a transposed view of a row-major matrix, and is not copied: with one weight [out, in],
    `matmul(x, weight.t())` is the forward pass of a layer and `matmul(grad, weight)` its backward pass.
    Raises ValueError on other tensors, RuntimeError if cuBLAS refuses the call.
    """
    k, n = weight.shape
    if x.dtype != torch.float16 or weight.dtype != torch.float16 or x.shape[-1] != k:
        raise ValueError(f"expected fp16 [..., {k}] times [{k}, {n}], found {x.dtype} {list(x.shape)}, {weight.dtype}")
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        raise ValueError("expected a row-major weight or a transposed view of one, found a strided one: copy it first")
    rows = x.reshape(-1, k).contiguous()
    y = x.new_empty(*x.shape[:-1], n)  # returned itself, not as a view: adapters are added to it in place
    for block, out in zip(rows.split(GEMM_ROWS), y.view(-1, n).split(GEMM_ROWS), strict=True):
        torch.sum(_partials(block, weight, chunk), dim=0, out=out)  # torch accumulates fp16 in fp32 and rounds once
    return y


def _partials(x: torch.Tensor, weight: torch.Tensor, chunk: int) -> torch.Tensor:
    """x [M, K], weight [K, N] -> [chunks, M, N]; the last chunk is the remainder of K."""
    (m, k), n = x.shape, weight.shape[1]
    whole, rest = divmod(k, chunk)
    out = x.new_empty(whole + bool(rest), m, n)
    if whole:
        _multiply(x, weight, out[:whole], 0, chunk)
    if rest:
        _multiply(x, weight, out[whole:], whole * chunk, rest)
    return out


def _multiply(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, first: int, depth: int) -> None:
    """out[c] = x[:, k] weight[k, :] for the `depth` values of k that start at `first + c * depth`.

    cuBLAS is column-major, so it sees the transpose of every matrix: the call computes out^T = weight^T x^T. A
    row-major weight is passed as it is, a transposed view with OP_T.
    """
    (batch, m, n), k = out.shape, x.shape[1]
    operation, lead, row = (OP_N, n, n) if weight.is_contiguous() else (OP_T, k, 1)
    a = (weight.data_ptr() + first * row * 2, R_16F, lead, depth * row)
    b = (x.data_ptr() + first * 2, R_16F, k, depth)
    c = (out.data_ptr(), R_16F, n, m * n)
    one, zero = ctypes.byref(ONE), ctypes.byref(ZERO)
    operands = (operation, OP_N, n, m, depth, one, *a, *b, zero, *c, batch)
    with torch.cuda.device_of(x):  # torch's handle is that of the current GPU, which may be another one
        status = cublas_function()(cublas_handle(x.device), *operands, COMPUTE_16F, GEMM_DEFAULT)
    if status == ALLOC_FAILED:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory in cuBLAS")  # type: ignore[misc,call-arg] # untyped
    if status:
        raise RuntimeError(
            f"cuBLAS returned status {status} (cublas_api.h) for {batch} products of {m} x {depth} x {n} in fp16, "
            "expected 0; use fp32 accumulation here"
        )


def cublas_handle(device: torch.device) -> int:
    """torch's own handle, with its stream and workspace. Raises ValueError on a CPU."""
    if device.type != "cuda":
        raise ValueError(f"only cuBLAS accumulates in fp16: expected tensors on a GPU, found them on {device}")
    return torch.cuda.current_blas_handle()


@functools.cache
def cublas_function() -> Any:
    """cublasGemmStridedBatchedEx of the library that torch has loaded: its handle is not valid for another one."""
    mapped = (line.split(maxsplit=5)[5:] for line in Path("/proc/self/maps").read_text().splitlines())
    path = next((name[0] for name in mapped if name and Path(name[0]).name.startswith("libcublas.so")), None)
    if path is None:
        raise RuntimeError("torch has loaded no libcublas.so, expected a torch with CUDA: use fp32 accumulation here")
    return SIGNATURE(("cublasGemmStridedBatchedEx", ctypes.CDLL(path)))


def int8_shapes(model: nn.Module) -> set[tuple[int, int]]:
    """(in, out) of every Int8Linear layer of the model: those that can accumulate in fp16."""
    return {(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, Int8Linear)}


def accumulate_in_fp16(model: nn.Module, chosen: Collection[tuple[int, int]], chunk: int = SPLIT_K) -> None:
    """Use `matmul` in the Int8Linear layers whose (in, out) is in `chosen`, and torch's in all others."""
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            fp16 = (layer.in_features, layer.out_features) in chosen
            layer.matmul = functools.partial(matmul, chunk=chunk) if fp16 else torch.matmul
