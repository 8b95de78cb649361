"""From this recipe's own folders (safetensors and tokenizer) to the formats of other programs: Meta's and GGUF."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch

from recipe.checkpoints import gguf_tokenizer, hf, llama, pth_out, safetensors
from recipe.checkpoints.source import LazyTensor, Source
from recipe.core.errors import RecipeError

if TYPE_CHECKING:
    from transformers import LlamaConfig


def to_meta(folder: Path, out: Path) -> None:
    """`folder` -> `out`/consolidated.00.pth, params.json and, where there is one, tokenizer.model.

    The weights keep their dtype. A tied output layer is written out, because Meta's code has no ties.
    Raises RecipeError on what Meta's params.json cannot say.
    """
    source, config = _open(folder)
    if config.rope_scaling or config.head_dim * config.num_attention_heads != config.hidden_size:
        raise RecipeError(f"{folder} has scaled rotary embeddings or its own head size, which Meta's format cannot say")
    tensors = _renamed(source, llama.meta_names(config.num_hidden_layers), folder)
    if config.tie_word_embeddings:
        embedding = next(tensor for tensor in tensors if tensor.name == llama.OUTER[llama.EMBEDDING][0])
        tensors.append(dataclasses.replace(embedding, name=llama.OUTER[llama.HEAD][0]))
    out.mkdir(parents=True, exist_ok=True)
    pth_out.write(out / "consolidated.00.pth", tensors)
    (out / "params.json").write_text(json.dumps(meta_params(config)) + "\n", encoding="utf-8")
    if (folder / "tokenizer.model").is_file():
        shutil.copyfile(folder / "tokenizer.model", out / "tokenizer.model")


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


def to_gguf(folder: Path, out_file: Path) -> None:
    """`folder` -> an f16 GGUF for llama.cpp: matrices as fp16, norms as fp32, tokenizer in the metadata.

    Raises RecipeError: values that fp16 cannot hold, or a tokenizer that llama.cpp has no name for.
    """
    from transformers import AutoTokenizer

    source, config = _open(folder)
    tensors = _renamed(source, llama.gguf_names(config.num_hidden_layers), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    writer = gguf.GGUFWriter(None, "llama")
    _describe(writer, config, out_file.stem)
    gguf_tokenizer.to_metadata(writer, tokenizer, config.vocab_size, folder)
    for tensor in tensors:
        kind = np.dtype(np.float16 if len(tensor.shape) > 1 else np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, kind, tensor.numel * kind.itemsize)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file(out_file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        dtype = torch.float16 if len(tensor.shape) > 1 else torch.float32
        writer.write_tensor_data(safetensors.cast(tensor.read(), tensor.name, dtype).numpy())
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: "LlamaConfig", name: str) -> None:
    """The model's settings under llama.cpp's keys."""
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.rope_scaling:
        kind = config.rope_scaling.get("rope_type", config.rope_scaling.get("type"))
        if kind != "linear":
            raise RecipeError(f"the model scales its rotary embedding as {kind!r}, which is not written to GGUF here")
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling["factor"])


def _open(folder: Path) -> "tuple[Source, LlamaConfig]":
    from transformers import LlamaConfig

    source = hf.open_source(folder)
    return source, LlamaConfig(**source.config)


def _renamed(source: Source, names: dict[str, str], folder: Path) -> list[LazyTensor]:
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
