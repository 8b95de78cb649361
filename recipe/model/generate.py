"""Answers of a model, greedy or sampled."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from recipe.model.likelihood import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def generate(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """The model's answer to each prompt of token ids, all at once: greedy at temperature 0, else sampled.

    Each stops at EOS, which is not part of it. `on_text` (one prompt only) receives the text as it is generated.
    """
    from transformers import GenerationConfig

    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    end = tokenizer.eos_token_id
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=end, **sampling)
    where = next(model.parameters()).device
    length = max(len(prompt) for prompt in prompts)
    padding = [length - len(prompt) for prompt in prompts]  # on the left, so that every answer begins in one column
    ids = torch.tensor([[end] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)], device=where)
    mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding], device=where)
    with torch.no_grad(), autocast(where):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            streamer=_streamer(tokenizer, on_text) if on_text else None,
        )
    return [tokenizer.decode(_until(row, end), skip_special_tokens=True).strip() for row in out[:, length:].tolist()]


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


def _streamer(tokenizer: "PreTrainedTokenizerFast", on_text: Callable[[str], None]) -> Any:
    """transformers' own TextStreamer (it holds back half a word or half a character) with `on_text` as its output."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
