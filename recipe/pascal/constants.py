"""Sizes that determine memory, for the kernels of this package and for the memory model, which imports no torch."""

TILED_FROM = 256  # tokens: below, a CPU computes the whole matrix of scores faster than its tiles
LOGIT_ROWS = 256  # rows: 33 MB of fp32 logits over 32,000 tokens, and a matmul that fills a GPU or a CPU
# Chunk of K: the largest whose errors in the table of gemm.py stay below the tolerance of the probe, 5e-3. Writing and
# adding the partial products takes about 10 % of the time of the product at 512, 5 % at 1024 (computed for
# 2048 x 4096 x 4096).
SPLIT_K = 512
GEMM_ROWS = 512  # rows per call, so that the partial products need about the memory of the fp16 weight


def partial_bytes(tokens: int, k: int, n: int, chunk: int = SPLIT_K) -> int:
    """Bytes of the fp16 partial products of a split-K matmul [tokens, k] x [k, n]."""
    return min(tokens, GEMM_ROWS) * n * -(-k // chunk) * 2
