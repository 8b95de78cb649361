"""From this recipe's own folders (safetensors and tokenizer) to Meta's format; `gguf_out` writes llama.cpp's."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.checkpoints import hf, llama, pth_out
from recipe.checkpoints.source import LazyTensor, Source
from recipe.core.errors import RecipeError

if TYPE_CHECKING:
    from transformers import LlamaConfig


def to_meta(folder: Path, out: Path) -> None:
    """`folder` -> `out`/consolidated.00.pth, params.json and the tokenizer: tokenizer.model, or tokenizer.json.

    The weights keep their dtype. A tied output layer is written out, because Meta's code has no ties.
    Raises RecipeError on what Meta's params.json cannot say.
    """
    source, config = open_model(folder)
    if config.rope_scaling or config.head_dim * config.num_attention_heads != config.hidden_size:
        raise RecipeError(f"{folder} has scaled rotary embeddings or its own head size, which Meta's format cannot say")
    tensors = rename(source, llama.meta_names(config.num_hidden_layers), folder)
    if config.tie_word_embeddings:
        embedding = next(tensor for tensor in tensors if tensor.name == llama.OUTER[llama.EMBEDDING][0])
        tensors.append(dataclasses.replace(embedding, name=llama.OUTER[llama.HEAD][0]))
    out.mkdir(parents=True, exist_ok=True)
    pth_out.write(out / "consolidated.00.pth", tensors)
    (out / "params.json").write_text(json.dumps(meta_params(config)) + "\n", encoding="utf-8")
    is_sentencepiece = (folder / "tokenizer.model").is_file()
    for name in ("tokenizer.model",) if is_sentencepiece else ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def meta_params(config: "LlamaConfig") -> dict[str, Any]:
    """Meta's params.json. Its code computes the width of the feed-forward layer:

    int(2 * 4 * dim / 3), times ffn_dim_multiplier if there is one, rounded up to multiple_of (llama/model.py).
    """
    width, computed = config.intermediate_size, int(8 * config.hidden_size / 3)
    multiple_of = next(power for power in (256, 128, 64, 32, 16, 8, 4, 2, 1) if width % power == 0)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_seq_len": config.max_position_embeddings,
    }
    if -(-computed // multiple_of) * multiple_of != width:
        # aimed between two multiples, so that no rounding of the product can miss it
        params["ffn_dim_multiplier"] = (width - multiple_of / 2 + 0.75) / computed
    return params


def open_model(folder: Path) -> "tuple[Source, LlamaConfig]":
    """A folder of this recipe: its tensors, and its config as transformers has it."""
    from transformers import LlamaConfig

    source = hf.open_source(folder)
    return source, LlamaConfig(**source.config)


def rename(source: Source, names: dict[str, str], folder: Path) -> list[LazyTensor]:
    """The tensors under the other format's names, q and k in its rotary layout."""
    tied = {llama.HEAD} if source.config.get("tie_word_embeddings") else set()
    odd = source.tensors.keys() ^ (names.keys() - tied)
    if odd:
        raise RecipeError(
            f"{folder} has other tensors than a plain LLaMA ({min(odd)}), which this format has no name for"
        )
    return [
        llama.renamed(source.tensors[name], new, source.config, llama.to_pairs)
        for name, new in names.items()
        if name not in tied
    ]
