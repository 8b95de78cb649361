"""Fused linear cross entropy: the loss is computed from hidden states in chunks, and the logits are never kept.

Logits of 2,048 tokens over a vocabulary of 32,000 are 262 MB in fp32, and autograd would keep them and two more tensors
of that size. The gradient of a token's loss by its hidden state is (softmax(logits) - one_hot(target)) @ weight, which
is known as soon as the logits are. So the forward pass computes it chunk by chunk and the backward pass only scales it
(the idea of Liger Kernel's fused linear cross entropy, Hsu et al. 2024, arXiv:2410.10989). Needs torch alone.
"""

from typing import Any

import torch

from recipe.pascal.constants import LOGIT_ROWS

VOCABULARY_TILE = 1536  # tokens of a matmul on a CPU, which is a seventh slower over a whole vocabulary at once


class _ChunkedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int) -> Any:
        wide = torch.promote_types(weight.dtype, torch.float32)  # softmax in fp16 would lose the small probabilities
        total = torch.zeros((), dtype=wide, device=hidden.device)
        # without the loss scale, which Trainer applies later, fp16 gradients of confident tokens would be subnormal
        grad = torch.empty(hidden.shape, dtype=wide, device=hidden.device) if ctx.needs_input_grad[0] else None
        logit_buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=weight.dtype)
        wide_buffer = torch.empty_like(logit_buffer, dtype=wide)  # reused: new pages for every chunk are slow
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            target = targets[rows, None]
            logits = _logits(hidden[rows], weight, out=logit_buffer[: len(target)])
            log_chances = torch.ops.aten._log_softmax.out(logits.to(wide), 1, False, out=wide_buffer[: len(target)])
            total -= log_chances.gather(1, target).sum()
            if grad is not None:
                slope = log_chances.exp_()
                slope.scatter_add_(1, target, slope.new_full((), -1.0).expand_as(target))
                grad[rows] = slope.to(weight.dtype) @ weight
        ctx.dtype = hidden.dtype
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (by_hidden,) = ctx.saved_tensors
        return (None if by_hidden is None else (by_hidden * grads[0]).to(ctx.dtype)), None, None, None


def chunked_nll(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int = LOGIT_ROWS
) -> torch.Tensor:
    """Summed negative log-likelihood in nats (a scalar, fp32) of `targets` under logits hidden @ weight.T.

    hidden [n, d] of any float dtype: only the positions that predict a trained token; weight [v, d], frozen, whose
    dtype is that of the matmuls (fp16 on a GPU, fp32 on a CPU); targets [n] int64 in 0..v-1. Needs memory for one
    fp32 gradient [n, d] and `chunk` rows of logits. Raises ValueError if the weight requires a gradient.
    """
    if weight.requires_grad:
        raise ValueError(
            "lm_head's weight requires a gradient, expected a frozen one: chunked_nll computes none for it"
        )
    return _ChunkedNll.apply(hidden, weight, targets, chunk)


@torch.no_grad()
def token_nll(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int = LOGIT_ROWS
) -> torch.Tensor:
    """Negative log-likelihood in nats of each of `targets`, [n] fp32, without gradients; see `chunked_nll`."""
    out = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=weight.dtype)
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        logits = _logits(hidden[rows], weight, out=buffer[: len(targets[rows])])
        out[rows] = torch.nn.functional.cross_entropy(logits.float(), targets[rows], reduction="none")
    return out


def _logits(hidden: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """hidden [n, d] times weight [v, d] transposed -> out [n, v] in the weight's dtype."""
    hidden = hidden.to(weight.dtype)
    width = len(weight) if hidden.is_cuda else VOCABULARY_TILE
    for start in range(0, len(weight), width):
        part = slice(start, start + width)
        torch.mm(hidden, weight[part].t(), out=out[:, part])
    return out
