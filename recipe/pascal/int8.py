"""Frozen linear layers with weights stored in int8, whose matmuls cannot overflow fp16 on a Pascal GPU.

The P100 has no int8 arithmetic, so int8 is only a storage format there. The usual fallback multiplies by the quantized
weights (up to 127) and scales the product afterwards, which overflows fp16: NaN, or "loss 0.0" (bitsandbytes issues
165, 343, 408). Here the weights are dequantized *first*, then one ordinary matmul follows: no value is larger than with
the original weight. The backward pass does the same, so a frozen layer keeps no activation. Needs torch alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Matmul = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
INT8_MAX = 127  # symmetric, -127..127; -128 is unused so that negation is exact


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-wise symmetric int8: weight [out, in] float -> quantized weight [out, in] int8, scale [out, 1] fp32.

    The largest magnitude of each row maps to 127; the error of a weight is at most half its row's scale.
    Raises ValueError if the weight is not finite.
    """
    weight = weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True)
    if not torch.isfinite(largest).all():
        raise ValueError("a weight to quantize holds inf or NaN, expected finite numbers")
    # divided by a tensor: CUDA multiplies by the reciprocal of a number, and a copy made there would have other bits
    scale = torch.where(largest > 0, largest / torch.full_like(largest, INT8_MAX), torch.ones_like(largest))
    return (weight / scale).round_().to(torch.int8), scale


def dequantize(quantized: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """quantized [out, in] int8, scale [out, 1] fp32 -> weight [out, in] in `dtype`.

    The product is computed in fp32 and rounded once: a scale below 6e-5 would be subnormal in fp16. With `out=` the
    cast happens inside the kernel, without an fp32 copy of the weight.
    """
    weight = torch.empty(quantized.shape, dtype=dtype, device=quantized.device)
    return torch.mul(quantized, scale, out=weight)


class _FrozenInt8Matmul(torch.autograd.Function):
    """y = x W^T, with W dequantized in both passes; keeps a reference to the quantized weight and no activation."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, quantized: torch.Tensor, scale: torch.Tensor, matmul: Matmul) -> Any:
        ctx.save_for_backward(quantized, scale)
        ctx.matmul = matmul
        return matmul(x, dequantize(quantized, scale, x.dtype).t())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        (grad,) = grads
        quantized, scale = ctx.saved_tensors
        return ctx.matmul(grad, dequantize(quantized, scale, grad.dtype)), None, None, None


class Int8Linear(nn.Linear):
    """A frozen linear layer without bias: `weight` int8 [out, in], `scale` fp32 [out, 1].

    A subclass of nn.Linear because that is what peft accepts as the base of a LoRA layer. Under autocast the input is
    cast to the autocast dtype first, as it would be in nn.Linear.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=False, device="meta")  # nothing is allocated, then replaced
        quantized, scale = quantize(weight)
        self.weight = nn.Parameter(quantized, requires_grad=False)
        self.register_buffer("scale", scale)

    scale: torch.Tensor
    matmul: Matmul = staticmethod(torch.matmul)  # gemm.accumulate_in_fp16 replaces it

    @classmethod
    def from_codes(cls, codes: torch.Tensor, scale: torch.Tensor) -> "Int8Linear":
        """A layer from a quantized weight: codes [out, in] int8, scale [out, 1] fp32."""
        layer = cls.__new__(cls)
        nn.Linear.__init__(layer, codes.shape[1], codes.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(codes, requires_grad=False)
        layer.register_buffer("scale", scale)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] float -> [..., out] in the same dtype, or in the autocast dtype under autocast."""
        if x.is_cuda and torch.is_autocast_enabled():
            x = x.to(torch.get_autocast_gpu_dtype())
        return _FrozenInt8Matmul.apply(x, self.weight, self.scale, self.matmul)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "Int8Linear":
        """`.half()` and `.to(dtype)` cast floats only, not the int8 weight; the fp32 scale must not be cast either."""
        scale = self.scale
        super()._apply(fn, *args, **kwargs)
        self.scale = scale.to(self.weight.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight=int8"
