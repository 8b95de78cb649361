"""Int8 storage for frozen linear layers that cannot overflow on a Pascal card.

The P100 has no int8 arithmetic, so int8 can only be storage there. The usual fallback multiplies by the codes (up to
127) and scales the product afterwards, which overflows fp16: NaN, or "loss 0.0" (bitsandbytes issues 165, 343, 408).
Here the row-scaled codes become ordinary weights *first*, then one ordinary matmul follows: nothing larger than the
original weight ever exists. Backward does the same, so a frozen layer keeps no activation. Needs torch alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Matmul = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CODE_MAX = 127  # symmetric codes -127..127; -128 stays unused so that negation is exact


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-wise symmetric int8: weight [out, in] float -> codes [out, in] int8, scale [out, 1] fp32.

    The largest magnitude of each row maps to 127; the error of a weight is at most half its row's scale.
    Raises ValueError on a weight that is not finite.
    """
    weight = weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True)
    if not torch.isfinite(largest).all():
        raise ValueError("a weight to quantise holds inf or NaN, expected finite numbers")
    scale = torch.where(largest > 0, largest / CODE_MAX, torch.ones_like(largest))
    return (weight / scale).round_().to(torch.int8), scale


def dequantize(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """codes [out, in] int8, scale [out, 1] fp32 -> weight [out, in] in `dtype`.

    The product is formed in fp32 and rounded once: a scale below 6e-5 would be subnormal in fp16. `out=` lets the
    cast happen inside the kernel, without an fp32 copy of the weight.
    """
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    return torch.mul(codes, scale, out=weight)


class _FrozenInt8Matmul(torch.autograd.Function):
    """y = x W^T with W rebuilt from codes in both directions; saves the codes by reference and no activation."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, matmul: Matmul) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.matmul = matmul
        return matmul(x, dequantize(codes, scale, x.dtype).t())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        (grad,) = grads
        codes, scale = ctx.saved_tensors
        return ctx.matmul(grad, dequantize(codes, scale, grad.dtype)), None, None, None


class Int8Linear(nn.Linear):
    """A frozen linear layer: `weight` int8 codes [out, in], `scale` fp32 [out, 1], optional bias.

    A subclass of nn.Linear because that is what peft accepts as the base of a LoRA layer. Under autocast the input
    arrives in its own dtype, so it is cast to autocast's first, as nn.Linear's matmul would be.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=False, device="meta")  # nothing is allocated, then replaced
        codes, scale = quantize(weight)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    scale: torch.Tensor
    matmul: Matmul = staticmethod(torch.matmul)  # gemm.use sets another for a model's layers

    @classmethod
    def from_codes(cls, codes: torch.Tensor, scale: torch.Tensor) -> "Int8Linear":
        """A layer from what `quantize` gave earlier: codes [out, in] int8, scale [out, 1] fp32, no bias."""
        layer = cls.__new__(cls)
        nn.Linear.__init__(layer, codes.shape[1], codes.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(codes, requires_grad=False)
        layer.register_buffer("scale", scale)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] float -> [..., out] in the same dtype (autocast's where that is on)."""
        if x.is_cuda and torch.is_autocast_enabled():
            x = x.to(torch.get_autocast_gpu_dtype())
        y = _FrozenInt8Matmul.apply(x, self.weight, self.scale, self.matmul)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "Int8Linear":
        """`.half()`, `.to(dtype)` leave the codes alone (torch only casts floats) and must leave the fp32 scale too."""
        scale = self.scale
        super()._apply(fn, *args, **kwargs)
        self.scale = scale.to(self.weight.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, codes=int8"
