"""Reference of bitsandbytes' NF4 kernels in plain torch, for a CPU. tests/gpu compares it with the real ones."""

import torch

# Dettmers et al. 2023, arXiv:2305.14314, appendix E.
# fmt: off
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
# fmt: on
BLOCK = 64


def quantize_4bit(weight, absmax=None, out=None, blocksize=BLOCK, compress_statistics=False, quant_type="fp4", **rest):
    """What the CUDA kernel does: the nearest of 16 values in each block of 64, two to a byte, the first one high."""
    from bitsandbytes import functional

    assert quant_type == "nf4" and weight.numel() % BLOCK == 0
    blocks = weight.float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    codes = (blocks / absmax[:, None].clamp_min(1e-30)).flatten()[:, None].sub(NF4).abs().argmin(dim=1)
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None]
    state = functional.QuantState(absmax, weight.shape, NF4.clone(), BLOCK, "nf4", weight.dtype)
    if compress_statistics:  # bitsandbytes' own CPU code quantises the scales
        state.offset = absmax.mean()
        state.absmax, state.state2 = functional.quantize_blockwise(absmax - state.offset, blocksize=256)
        state.nested = True
    return packed, state


def dequantize_4bit(packed, quant_state=None, **rest):
    from bitsandbytes import functional

    absmax = quant_state.absmax
    if quant_state.nested:
        absmax = functional.dequantize_blockwise(absmax, quant_state.state2) + quant_state.offset
    flat = packed.flatten()
    codes = torch.stack([flat >> 4, flat & 15], dim=1).flatten().long()
    weight = (NF4[codes].reshape(-1, BLOCK) * absmax[:, None]).reshape(quant_state.shape).to(quant_state.dtype)
    return weight.t() if packed.shape[0] == 1 else weight


def gemv_4bit(x, packed, out=None, state=None, **rest):
    return x @ dequantize_4bit(packed, state).t()
