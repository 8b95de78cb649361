"""Reference of bitsandbytes' 8-bit AdamW kernel in plain torch. tests/gpu compares it with the real one."""

import torch

BLOCK = 256  # of bitsandbytes' blockwise moments


def optimizer_update_8bit_blockwise(
    name, g, p, state1, state2, beta1, beta2, beta3, alpha, eps, step, lr, qmap1, qmap2, absmax1, absmax2,
    weight_decay=0.0, gnorm_scale=1.0, skip_zeros=False,
):  # fmt: skip
    """What the CUDA kernel does: AdamW on moments that are 8-bit codes with a scale per block of 256."""
    assert name == "adam"
    first = decode(state1, qmap1, absmax1).mul_(beta1).add_(g, alpha=1 - beta1)
    second = decode(state2, qmap2, absmax2).mul_(beta2).add_(g * g, alpha=1 - beta2)
    p.mul_(1 - lr * weight_decay)
    p.addcdiv_(first, (second / (1 - beta2**step)).sqrt_().add_(eps), value=-lr / (1 - beta1**step))
    encode(first, state1, qmap1, absmax1)
    encode(second, state2, qmap2, absmax2)


def decode(codes, qmap, absmax):
    return qmap[codes.long()] * absmax.repeat_interleave(BLOCK)[: codes.numel()].view_as(codes)


def encode(values, codes, qmap, absmax):
    blocks = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    absmax.copy_(blocks.abs().amax(dim=1))
    scaled = (blocks / absmax[:, None].clamp_min(1e-30)).flatten()[: values.numel()]
    middles = (qmap[1:] + qmap[:-1]) / 2  # qmap ascends: the nearest entry is told by the middles below
    codes.copy_(torch.bucketize(scaled, middles).view_as(codes))
