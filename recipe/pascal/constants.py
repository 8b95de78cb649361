"""Sizes that decide memory: shared by the kernels here and by the memory model, which imports no torch."""

TILED_FROM = 256  # tokens: below, a CPU is done with the whole matrix of scores sooner than with its blocks
LOGIT_ROWS = 256  # rows: 33 MB of fp32 logits over 32,000 pieces, and a matmul that fills a card or a CPU
# The largest at which none of these reaches the probe's gate, 5e-3. Writing and adding the chunks' products takes about
# 10 % of the time of the product itself at 512, 5 % at 1024 (arithmetic, 2048 x 4096 x 4096).
SPLIT_K = 512
GEMM_ROWS = 512  # multiplied at a time, so that the chunks' products take about the memory of the fp16 weight


def partial_bytes(tokens: int, k: int, n: int, chunk: int = SPLIT_K) -> int:
    """What `matmul` needs beside its result."""
    return min(tokens, GEMM_ROWS) * n * -(-k // chunk) * 2
