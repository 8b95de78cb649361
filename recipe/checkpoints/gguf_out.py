"""From this recipe's own folders to GGUF, the format of llama.cpp and Ollama: models, quantized or not, and adapters.

The quantizers are those of llama.cpp's own `gguf` library, in numpy. One tensor is in memory at a time. A model is one
file of any size unless it is split: llama.cpp reads split ones, Ollama does not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from recipe.checkpoints import gguf_tokenizer, llama, safetensors
from recipe.checkpoints.adapter import Delta
from recipe.checkpoints.export import open_model, rename
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError

if TYPE_CHECKING:
    from transformers import LlamaConfig

# name -> (type of the matrices, llama.cpp's name of such a file)
KINDS = {
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Kind.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Kind.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (Kind.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
BLOCK = 32  # elements that share a scale, in every one of these types
OUTER = {names[1] for name, names in llama.OUTER.items() if name != llama.NORM}


def write(
    folder: Path,
    path: Path,
    kind: str = "f16",
    chat_template: str | None = None,
    end_id: int | None = None,
    shard_bytes: int = 0,
) -> None:
    """`folder` -> a GGUF file at `path`, tokenizer and chat template in its metadata.

    `end_id`: the token that ends an answer, where it is not the tokenizer's EOS. `shard_bytes`: the most bytes of
    weights in a file, which is then named NAME-00001-of-00007.gguf where there are several; 0: one file.
    Matrices are stored as `kind` (a key of KINDS), norms as fp32. In the 4- and 5-bit kinds the embedding and the
    output layer have 8 bits, since errors in them reach every token; a matrix whose rows are not whole blocks stays
    fp16. Raises RecipeError: values that fp16 cannot hold, or a tokenizer that llama.cpp has no name for.
    """
    from transformers import AutoTokenizer

    source, config = open_model(folder)
    tensors = rename(source, llama.gguf_names(config.num_hidden_layers), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    writer = gguf.GGUFWriter(None, "llama", split_max_size=shard_bytes)
    _describe(writer, config, path.stem, KINDS[kind][1])
    if kind != "f16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_tokenizer.to_metadata(writer, tokenizer, config.vocab_size, folder)
    if end_id is not None:
        writer.add_eot_token_id(end_id)
    if chat_template:
        writer.add_chat_template(chat_template)
    _write(writer, path, {tensor.name: (tensor, _stored_as(tensor, KINDS[kind][0])) for tensor in tensors})


def write_adapter(
    deltas: Mapping[str, Delta], config: "LlamaConfig", path: Path, chat_template: str | None = None
) -> None:
    """A LoRA adapter -> one GGUF file for llama.cpp's --lora, beside a GGUF of the base.

    deltas: weight name -> (alpha / r * B [out, r], A [r, in]), fp32. llama.cpp scales by alpha / r again, so alpha is
    written as r. The rows of B of a query or key projection get GGUF's rotary layout, as those of W have.
    Raises RecipeError: adapted layers of different ranks, or one that GGUF has no name for.
    """
    names = llama.gguf_names(config.num_hidden_layers)
    ranks = {len(a) for _, a in deltas.values()}
    if unknown := deltas.keys() - names.keys():
        raise RecipeError(f"the adapter changes {min(unknown)}, which GGUF has no name for: merge it instead")
    if len(ranks) != 1:
        raise RecipeError(f"the adapter has the ranks {sorted(ranks)}, a GGUF adapter has one: merge it instead")
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(min(ranks)))
    writer.add_name(path.stem)
    if chat_template:
        writer.add_chat_template(chat_template)
    tensors = {}
    for name, (b, a) in sorted(deltas.items()):
        heads = llama.rotary_heads(name, config.to_dict())
        for factor, matrix in (("lora_a", a), ("lora_b", llama.to_pairs(b, heads) if heads else b)):
            lazy = LazyTensor(f"{names[name]}.{factor}", tuple(matrix.shape), torch.float32, matrix.contiguous)
            tensors[lazy.name] = (lazy, Kind.F32)
    _write(writer, path, tensors)


def _stored_as(tensor: LazyTensor, kind: Kind) -> Kind:
    if len(tensor.shape) == 1:
        return Kind.F32
    if kind != Kind.F16 and tensor.shape[-1] % BLOCK:
        return Kind.F16
    return Kind.Q8_0 if tensor.name in OUTER and kind != Kind.F16 else kind


def _write(writer: gguf.GGUFWriter, path: Path, tensors: Mapping[str, tuple[LazyTensor, Kind]]) -> None:
    for tensor, kind in tensors.values():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # the library wants the real shape for its own types, and bytes for quantized ones
        item = {Kind.F16: np.float16, Kind.F32: np.float32}.get(kind, np.uint8)
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind) if item is np.uint8 else tensor.shape
        writer.add_tensor_info(tensor.name, shape, np.dtype(item), tensor.numel // block * size, raw_dtype=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in tensors.values():
        dtype = torch.float16 if kind == Kind.F16 else torch.float32
        data = safetensors.cast(tensor.read(), tensor.name, dtype).numpy()
        writer.write_tensor_data(gguf.quants.quantize(data, kind))
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: "LlamaConfig", name: str, file_type: gguf.LlamaFileType) -> None:
    """The model's settings under llama.cpp's keys."""
    writer.add_name(name)
    writer.add_file_type(file_type)
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
