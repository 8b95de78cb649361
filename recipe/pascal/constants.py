"""Sizes that determine memory, for the kernels of this package and for the memory model, which imports no torch."""

TILED_FROM = 256  # tokens: below, a CPU computes the whole matrix of scores faster than its tiles
LOGIT_ROWS = 256  # rows: 33 MB of fp32 logits over 32,000 tokens, and a matmul that fills a GPU or a CPU
# Chunk of K: the largest whose errors in the table of gemm.py stay below the tolerance of the probe, 5e-3. Writing and
# adding the partial products takes about 10 % of the time of the product at 512, 5 % at 1024 (computed for
# 2048 x 4096 x 4096).
SPLIT_K = 512
GEMM_ROWS = 512  # rows per call, so that the partial products need about the memory of the fp16 weight

# Compute capabilities whose fp16 arithmetic is absent or slower than fp32 (6.1, as a P40: 1/64 of the rate):
# the table of arithmetic throughput in NVIDIA's CUDA C programming guide.
SLOW_FP16 = ((3, 7), (5, 0), (5, 2), (6, 1))


def computes_in_fp16(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability computes in fp16, else in fp32."""
    return capability not in SLOW_FP16


def layer_ranges(layers: int, gpus: int) -> list[range]:
    """The decoder layers that each of `gpus` GPUs holds, as even as can be; the first GPU has no more than others."""
    return [range(layers * gpu // gpus, layers * (gpu + 1) // gpus) for gpu in range(gpus)]


def recomputed_by_gpu(layers: int, gpus: int, recomputed: int) -> list[int]:
    """How many of its layers each GPU recomputes, the first ones: `recomputed` in all, dealt out in turn.

    Raises ValueError if there are fewer layers.
    """
    if not 0 <= recomputed <= layers:
        raise ValueError(f"asked to recompute {recomputed} of {layers} layers, expected 0 to {layers}")
    turns = sorted((turn, gpu) for gpu, own in enumerate(layer_ranges(layers, gpus)) for turn in range(len(own)))
    dealt = [gpu for _, gpu in turns[:recomputed]]
    return [dealt.count(gpu) for gpu in range(gpus)]


def partial_bytes(tokens: int, k: int, n: int, chunk: int = SPLIT_K) -> int:
    """Bytes of the fp16 partial products of a split-K matmul [tokens, k] x [k, n]."""
    return min(tokens, GEMM_ROWS) * n * -(-k // chunk) * 2
