"""The arithmetic of gemm.py once more, exactly and slowly: what a card's fp16 adders do, in numpy on a CPU."""

import numpy as np
from numpy.typing import NDArray

Half = NDArray[np.float16]


def partial(x: Half, w: Half) -> Half:
    """x [..., M, K], w [..., K, N] -> their product [..., M, N] by K fused multiply-adds of fp16 in a row.

    One FMA is exact in fp64 (a product of halves has 22 bits, and their exponents span too little for a bit to be lost
    where it could decide a rounding) and is then rounded once, by numpy; torch would round twice, through fp32.
    """
    wide_x, wide_w = x.astype(np.float64), w.astype(np.float64)
    total = np.zeros((*x.shape[:-1], w.shape[-1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(x.shape[-1]):
            total += wide_x[..., k, None] * wide_w[..., k, None, :]
            total = total.astype(np.float16).astype(np.float64)
    return total.astype(np.float16)


def matmul(x: Half, w: Half, chunk: int | None) -> Half:
    """x [M, K], w [K, N] -> [M, N]: fp16 within a chunk of K (None: all of it), fp32 from chunk to chunk."""
    k = x.shape[1]
    chunk = chunk or k
    whole = k // chunk * chunk
    parts = []
    if whole:
        columns = x[:, :whole].reshape(len(x), -1, chunk).swapaxes(0, 1)
        parts.append(partial(columns, w[:whole].reshape(-1, chunk, w.shape[1])))
    if whole < k:
        parts.append(partial(x[:, whole:], w[whole:])[None])
    return np.concatenate(parts).sum(axis=0, dtype=np.float32).astype(np.float16)


def error(y: Half, x: Half, w: Half) -> float:
    """Relative error (Frobenius norm) of y against the exact product."""
    exact = x.astype(np.float64) @ w.astype(np.float64)
    return float(np.linalg.norm(y.astype(np.float64) - exact) / np.linalg.norm(exact))


def outliers(rows: int, k: int, columns: int, seed: int = 0) -> tuple[Half, Half]:
    """Inputs as a LLaMA's: normal activations with six channels forty times as large, normal weights."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, k))
    x[:, generator.choice(k, 6, replace=False)] *= 40
    w = generator.standard_normal((k, columns)) * 0.02
    return x.astype(np.float16), w.astype(np.float16)
