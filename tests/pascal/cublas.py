"""What cuBLAS' documentation says of cublasGemmStridedBatchedEx, done on host memory: hardware for tests without any.

C[i] = alpha op(A[i]) op(B[i]) + beta C[i], matrices in column-major order with leading dimensions, the batch's matrices
a stride apart, summed in fp16 as a card does (fp16.py). It knows nothing of torch: it reads the addresses it is given,
through a C function of the header's own signature.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.pascal import fp16

HANDLE = 0xB1A5
SUCCESS, NOT_INITIALIZED, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 7, 15

_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
GEMM_STRIDED_BATCHED_EX = ctypes.CFUNCTYPE(
    _int,  # cublasStatus_t
    _pointer,  # handle
    _int,  # transa
    _int,  # transb
    _int,  # m
    _int,  # n
    _int,  # k
    _pointer,  # alpha
    _pointer,  # A
    _int,  # Atype
    _int,  # lda
    _long,  # strideA
    _pointer,  # B
    _int,  # Btype
    _int,  # ldb
    _long,  # strideB
    _pointer,  # beta
    _pointer,  # C
    _int,  # Ctype
    _int,  # ldc
    _long,  # strideC
    _int,  # batchCount
    _int,  # computeType
    _int,  # algo
)


class Library:
    """One entry point as a C function at `address`, and what it was asked for; `status` set: it fails with that."""

    def __init__(self, status: int = SUCCESS) -> None:
        self.status, self.calls = status, []
        self._callback = GEMM_STRIDED_BATCHED_EX(self._gemm)  # kept: C code does not count references
        self.address = ctypes.cast(self._callback, _pointer).value

    def function(self, signature: Callable[[int | None], Any]) -> Any:
        """The C function, called as `signature` believes it is."""
        return signature(self.address)

    def _gemm(self, handle, ta, tb, m, n, k, alpha, a, atype, lda, sa, b, btype, ldb, sb, beta, c, ctype, ldc, sc, batch, compute, algo):  # fmt: skip  # noqa: E501
        self.calls.append({"m": m, "n": n, "k": k, "batch": batch})
        if self.status:
            return self.status
        if handle != HANDLE:
            return NOT_INITIALIZED
        if (atype, btype, ctype, compute, algo) != (2, 2, 2, 64, -1) or not {ta, tb} <= {0, 1}:
            return NOT_SUPPORTED
        rows_a, rows_b = (k if ta else m), (n if tb else k)
        if min(m, n, k, batch) < 0 or lda < max(1, rows_a) or ldb < max(1, rows_b) or ldc < max(1, m):
            return INVALID_VALUE
        scale, keep = _scalar(alpha), _scalar(beta)
        left = _matrices(a, batch, rows_a, m if ta else k, lda, sa)
        right = _matrices(b, batch, rows_b, k if tb else n, ldb, sb)
        out = _matrices(c, batch, m, n, ldc, sc)
        left, right = (each.swapaxes(1, 2) if op else each for each, op in ((left, ta), (right, tb)))
        product = scale * fp16.partial(left, right)
        out[...] = product if keep == 0 else product + keep * out  # C may hold anything where beta is 0
        return SUCCESS


def _scalar(address: int) -> np.float16:
    return np.frombuffer((ctypes.c_char * 2).from_address(address), np.float16)[0]


def _matrices(address: int, batch: int, rows: int, columns: int, lead: int, stride: int) -> np.ndarray:
    """The batch as [batch, rows, columns] over that memory, which is read no further than its last element."""
    if 0 in (batch, rows, columns):
        return np.empty((batch, rows, columns), np.float16)
    count = (batch - 1) * stride + (columns - 1) * lead + rows
    flat = np.frombuffer((ctypes.c_char * (2 * count)).from_address(address), np.float16)
    return np.lib.stride_tricks.as_strided(flat, (batch, rows, columns), (2 * stride, 2, 2 * lead))
