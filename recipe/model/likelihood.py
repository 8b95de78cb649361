"""Negative log-likelihood of packs, without the logits."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recipe.core.errors import RecipeError
from recipe.pascal.loss import chunked_nll

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

IGNORED = -100  # the label of a position without loss, as torch's cross entropy has it


def causal_lm(model: Any) -> "LlamaForCausalLM":
    """The LLaMA itself, from under an adapter if there is one (its layers stay the adapter's)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def autocast(where: torch.device) -> AbstractContextManager:
    """fp16 matmuls on a card; nothing on a CPU."""
    return torch.autocast("cuda", torch.float16) if where.type == "cuda" else nullcontext()


def trained_nll(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood (nats, fp32) of a pack's trained tokens, and how many there are.

    batch: what `data.collate` makes. Only the hidden states that predict a trained token meet lm_head, a few at a
    time. Raises RecipeError where there is none.
    """
    llama = causal_lm(model)
    where = llama.lm_head.weight.device
    targets = batch["labels"][0, 1:].to(where)
    keep = (targets != IGNORED).nonzero().squeeze(1)
    if not len(keep):
        raise RecipeError("a batch without a trained token: the corpus holds a sample without an assistant turn")
    with autocast(where):
        hidden = llama.model(
            input_ids=batch["input_ids"].to(where),
            position_ids=batch["position_ids"].to(where),
            attention_mask=torch.empty(1, 1, 1, 1, device=where),  # unread; its shape keeps transformers from S x S
            use_cache=False,
            lengths=batch["lengths"],
            shared=batch["shared"],
        ).last_hidden_state
        return chunked_nll(hidden[0, keep], llama.lm_head.weight, targets[keep]), len(keep)


def held_out_nll(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """Total negative log-likelihood in nats and number of trained tokens over `batches`; dropout off, no gradients."""
    training, total, count = model.training, 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            nll, tokens = trained_nll(model, batch)
            total, count = total + nll.item(), count + tokens
    model.train(training)
    return total, count
