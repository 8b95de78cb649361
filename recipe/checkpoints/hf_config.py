"""config.json and generation_config.json, as transformers 4.49 reads them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def write(folder: Path, config: dict[str, Any], tokenizer: "PreTrainedTokenizerFast", dtype: torch.dtype) -> list[str]:
    """Write both files; their special tokens are the tokenizer's. Returns what that changed, one sentence each.

    A source's sampling settings are not taken over: several published ones are refused by transformers, and every
    stage here says itself how it samples. A list of ends (LLaMA 3) is kept where the tokenizer's is among them.
    """
    from transformers import GenerationConfig, LlamaConfig

    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    ends = config.get("eos_token_id")
    if isinstance(ends, list) and ids["eos_token_id"] in ends and max(ends) < config["vocab_size"]:
        ids["eos_token_id"] = ends
    changed = [
        f"config.json: {key} was {config[key]}, now the tokenizer's {value}"
        for key, value in ids.items()
        if type(config.get(key)) is int
        and config[key] != value
        and not (isinstance(value, list) and config[key] in value)
    ]
    llama = LlamaConfig(**{**config, **ids, "torch_dtype": dtype, "architectures": ["LlamaForCausalLM"]})
    llama.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    return changed
