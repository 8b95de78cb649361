"""Negative log-likelihood of packs, without storing the logits."""

import itertools
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recipe.core.errors import RecipeError
from recipe.pascal.dtypes import compute_dtype
from recipe.pascal.loss import chunked_nll, token_nll

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

IGNORED = -100  # the label of a position without loss, the default of torch's cross entropy


def causal_lm(model: Any) -> "LlamaForCausalLM":
    """The LLaMA itself: `model`, or what a PeftModel wraps (its layers keep their adapters)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def autocast(device: torch.device) -> AbstractContextManager:
    """fp16 autocast on a device that computes in fp16; nothing on others."""
    return torch.autocast("cuda", torch.float16) if compute_dtype(device) == torch.float16 else nullcontext()


def trained_nll(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
    """(summed negative log-likelihood in nats, an fp32 scalar; number of trained tokens) of a pack.

    batch: a pack of `training.dataset.PackedDataset`. Only the hidden states that predict a trained token are
    multiplied with lm_head, a few at a time. Raises RecipeError if no token is trained.
    """
    llama = causal_lm(model)
    device = llama.lm_head.weight.device
    with autocast(device):
        hidden, targets = trained_positions(model, batch)
        return chunked_nll(hidden, llama.lm_head.weight, targets), len(targets)


def trained_positions(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states [n, hidden] that predict a trained token, those tokens [n] int64) of a pack.

    Raises RecipeError if no token is trained.
    """
    llama = causal_lm(model)
    device = llama.lm_head.weight.device
    keep, targets = targets_of(batch, device)
    hidden = llama.model(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        # not read; with this shape transformers does not build an S x S mask
        attention_mask=torch.empty(1, 1, 1, 1, device=device),
        use_cache=False,
        lengths=batch["lengths"],
        prefix=batch["prefix"],
    ).last_hidden_state
    return hidden[0, keep], targets


def targets_of(batch: Mapping[str, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions [n] that predict a trained token, those tokens [n] int64) of a pack.

    Raises RecipeError if no token is trained.
    """
    targets = batch["labels"][0, 1:].to(device)
    keep = (targets != IGNORED).nonzero().squeeze(1)
    if not len(keep):
        raise RecipeError(
            "a pack without a trained token, expected at least one: the corpus has a sample without an assistant "
            "turn; prepare it again"
        )
    return keep, targets[keep]


def pack_token_nll(model: nn.Module, batch: Mapping[str, Any]) -> list[list[float]]:
    """Negative log-likelihood in nats of every trained token of a pack, a list for each of its conversations."""
    weight = causal_lm(model).lm_head.weight
    with torch.no_grad(), autocast(weight.device):
        hidden, targets = trained_positions(model, batch)
        nll = token_nll(hidden, weight, targets)
    return by_conversation(batch, nll)


def by_conversation(batch: Mapping[str, Any], nll: torch.Tensor) -> list[list[float]]:
    """The values of a pack's trained tokens, in order, as a list for each of its conversations."""
    lengths, prefix = batch["lengths"], batch["prefix"]
    ends = list(itertools.accumulate(lengths[:1] + [length - prefix for length in lengths[1:]]))
    trained = (batch["labels"][0] != IGNORED).tolist()
    counts = [sum(trained[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return [part.tolist() for part in nll.cpu().split(counts)]


def validation_nll(model: nn.Module, packs: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """(summed negative log-likelihood in nats, number of trained tokens) over `packs`; no dropout, no gradients."""
    training, total, count = model.training, 0.0, 0
    model.eval()
    with torch.no_grad():
        for pack in packs:
            nll, tokens = trained_nll(model, pack)
            total, count = total + nll.item(), count + tokens
    model.train(training)
    return total, count
