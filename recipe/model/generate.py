"""Greedy answers of a model to several prompts at once. `recipe.serving.engine` streams a single one, and samples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from recipe.model.likelihood import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def generate(
    model: Any, tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """The greedy answer to each prompt of token ids, in one batch. Each ends at EOS, which is not part of it."""
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=end, do_sample=False)
    device = next(model.parameters()).device
    length = max(len(prompt) for prompt in prompts)
    padding = [length - len(prompt) for prompt in prompts]  # on the left, so that all answers start in one column
    padded = [[end] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    ids = torch.tensor(padded, device=device)
    mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding], device=device)
    with torch.no_grad(), autocast(device):
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return [tokenizer.decode(_until(row, end), skip_special_tokens=True).strip() for row in out[:, length:].tolist()]


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row
