"""LoRA on the linear layers that read one input: their adapters as one function (Hu et al. 2021, arXiv:2106.09685).

peft computes each adapter alone: it casts the input to fp32, copies it for dropout, and scales and adds the result in
passes of their own. Here the A matrices of q, k and v (or of gate and up) are one matmul, x is kept once in the compute
dtype, the scale is folded into B, each result is added to the frozen layer's output inside the matmul, and the dropout
mask is drawn again from its seed in the backward pass instead of being kept. The parameters stay peft's own. Needs
torch alone.
"""

from typing import Any

import torch
from torch import nn


class _AddAdapters(torch.autograd.Function):
    """outputs[i] += dropout(x) A_i^T B_i^T, in place; `down` is all A [sum of ranks, in], `ups` each B [out, rank]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, down: torch.Tensor, dropout: tuple[float, int], *rest: torch.Tensor) -> Any:
        outputs, ups = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        inner = _drop(_rows(x), dropout) @ down.t()
        for output, up, part in zip(outputs, ups, _parts(inner, ups), strict=True):
            output.view(-1, output.shape[-1]).addmm_(part, up.t())
        ctx.mark_dirty(*outputs)
        ctx.save_for_backward(x, down, inner, *ups)
        ctx.dropout = dropout
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, down, inner, *ups = ctx.saved_tensors
        rows = [_rows(grad) for grad in grads]
        by_inner = torch.cat([grad @ up for grad, up in zip(rows, ups, strict=True)], dim=1)
        by_ups = [grad.t() @ part for grad, part in zip(rows, _parts(inner, ups), strict=True)]
        by_down = by_inner.t() @ _drop(_rows(x), ctx.dropout)
        by_x = _drop(by_inner @ down, ctx.dropout).view_as(x) if ctx.needs_input_grad[0] else None
        return (by_x, by_down, None, *grads, *by_ups)


def project(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """What each of `layers` makes of x [..., in]: [..., out] in the compute dtype.

    A layer is a frozen linear layer, or peft's LoRA layer around one (one adapter, without bias or variant). Equal to
    calling the layers within rounding, but that with dropout they share one mask, as they share the input.
    """
    outputs = [_frozen(layer)(x) for layer in layers]
    adapted = [number for number, layer in enumerate(layers) if _is_adapted(layer)]
    if not adapted:
        return tuple(outputs)
    adapters = [_Adapter(layers[number]) for number in adapted]
    dtype = outputs[adapted[0]].dtype
    down = torch.cat([each.down for each in adapters]).to(dtype)
    ups = [(each.up * each.scale).to(dtype) for each in adapters]
    dropout = _draw_dropout(adapters[0].dropout)
    added = _AddAdapters.apply(x.to(dtype), down, dropout, *(outputs[number] for number in adapted), *ups)
    for number, output in zip(adapted, added, strict=True):
        outputs[number] = output
    return tuple(outputs)


class _Adapter:
    """The active adapter of peft's LoRA layer: A [rank, in], B [out, rank], the scale, the share that dropout drops."""

    def __init__(self, layer: Any) -> None:
        (name,) = layer.active_adapters
        self.down, self.up = layer.lora_A[name].weight, layer.lora_B[name].weight
        self.scale = layer.scaling[name]
        dropout = layer.lora_dropout[name]
        self.dropout = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def _frozen(layer: Any) -> Any:
    return layer.base_layer if hasattr(layer, "lora_A") else layer


def _is_adapted(layer: Any) -> bool:
    return hasattr(layer, "lora_A") and not layer.disable_adapters and not layer.merged


def _draw_dropout(share: float) -> tuple[float, int]:
    """(share, seed of the mask). Drawn on the CPU, whose random state checkpoints and recomputation restore."""
    return share, int(torch.randint(2**62, ())) if share else 0


def _drop(x: torch.Tensor, dropout: tuple[float, int]) -> torch.Tensor:
    """x with a share of its numbers zeroed and the others scaled up: the same ones for one seed."""
    share, seed = dropout
    if not share:
        return x
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.empty_like(x).bernoulli_(1 - share, generator=generator).mul_(x).div_(1 - share)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [rows, n]."""
    return x.reshape(-1, x.shape[-1])


def _parts(inner: torch.Tensor, ups: Any) -> Any:
    """The columns of each adapter in x A^T [rows, sum of ranks]."""
    return inner.split([up.shape[1] for up in ups], dim=1)
