"""GGUF files of llama.cpp's `llama` architecture: metadata, tokenizer and weights, dequantized as they are read."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from recipe.checkpoints import gguf_tokenizer, llama
from recipe.checkpoints.adapter import Delta
from recipe.checkpoints.files import check_not_pointer
from recipe.checkpoints.source import LazyTensor, Source
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

FLOATS = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
    gguf.GGMLQuantizationType.BF16: torch.bfloat16,
}
CHUNK_ROWS = 2048
SHARD_NAME = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")
MOST_STRINGS = 1 << 21  # LLaMA 3 has 128,256 tokens and 280,147 merges


def open_source(path: Path) -> Source:
    """A .gguf file, or any shard of a split one.

    Raises RecipeError: truncated, another architecture, settings that this recipe cannot keep, a missing shard.
    """
    fields, tensors = read_file(path)
    files = _shards(path, fields)
    if len(files) > 1:
        fields, tensors = _read_shards(files)
    if fields.get("general.architecture") != "llama":
        other = snippet(repr(fields.get("general.architecture")))
        raise RecipeError(f"{path}: its architecture is {other}, expected 'llama'")
    config = _config(fields, tensors, path)
    hf = {new: old for old, new in llama.gguf_names(config["num_hidden_layers"]).items()}
    # llama.cpp's converter gives q and k Meta's rotary layout
    renamed = [llama.renamed(tensor, hf.get(name, name), config, llama.to_halves) for name, tensor in tensors.items()]
    return Source(
        kind="GGUF",
        config=config,
        tensors={tensor.name: tensor for tensor in renamed},
        files=tuple(files),
        tokenizer=functools.partial(gguf_tokenizer.from_metadata, fields, path=path),
    )


def read_adapter(path: Path, config: Mapping[str, Any]) -> dict[str, Delta]:
    """Weight name -> (scaled B [out, r], A [r, in]), fp32, of a LoRA adapter in GGUF for a base with this `config`.

    Raises RecipeError: truncated, not an adapter, tensors that are not pairs of an A and a B of this base.
    """
    fields, tensors = read_file(path)
    alpha = fields.get("adapter.lora.alpha")
    if fields.get("general.type") != "adapter" or not isinstance(alpha, float):
        raise RecipeError(f"{path} is not a LoRA adapter: expected a file of `--to gguf-lora`")
    hf = {new: old for old, new in llama.gguf_names(config["num_hidden_layers"]).items()}
    deltas = {}
    for name in (name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")):
        if name not in hf or f"{name}.lora_b" not in tensors:
            raise RecipeError(f"{path}: {snippet(name)} is not a layer of this base with an A and a B")
        a, b = (tensors[f"{name}.lora_{half}"].read().float() for half in "ab")
        heads = llama.rotary_heads(hf[name], config)
        deltas[hf[name]] = (alpha / len(a) * (llama.to_halves(b, heads) if heads else b), a)
    return deltas


class _Reader(gguf.GGUFReader):
    """The library's reader, which counts beyond a file's end and makes an object for each number of an array."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("it ends before its own lengths say")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        item = self.gguf_scalar_to_np.get(gguf.GGUFValueType(kind[0]))
        if item is not None:
            block = self._get(orig_offs + 12, item, count[0])
            return 12 + block.nbytes, [kind, count, block], [2], [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind[0])]
        if kind[0] != gguf.GGUFValueType.STRING or count[0] > MOST_STRINGS:
            raise ValueError(f"it has an array of {count[0]:,} values of type {kind[0]}")
        return super()._get_field_parts(orig_offs, raw_type)


def _shards(path: Path, fields: dict[str, Any]) -> list[Path]:
    """The files of a split GGUF, as llama-gguf-split names them; `path` alone if it is not split."""
    count = fields.get("split.count", 1)
    if count == 1 or type(count) is not int:
        return [path]
    name = SHARD_NAME.fullmatch(path.name)
    if name is None or int(name[2]) != count or not 0 < count < 10_000:
        raise RecipeError(f"{path} is one of {count} shards, expected a name like model-00001-of-{count:05d}.gguf")
    return [path.with_name(f"{name[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def _read_shards(files: list[Path]) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """The metadata of the first shard, and the tensors of all of them."""
    fields, tensors = read_file(files[0])
    for file in files[1:]:
        _, more = read_file(file)
        if twice := tensors.keys() & more.keys():
            raise RecipeError(f"{file} repeats {snippet(min(twice))} of another shard: download it again")
        tensors |= more
    if len(tensors) != fields.get("split.tensors.count", len(tensors)):
        raise RecipeError(
            f"{files[0]} and its shards hold {len(tensors)} tensors, expected another number: download again"
        )
    return fields, tensors


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """The metadata as plain values (arrays of numbers as numpy's), and the tensors under GGUF's names."""
    check_not_pointer(path)
    try:
        reader = _Reader(path)
        fields = {name: _value(field) for name, field in reader.fields.items()}
        size = path.stat().st_size
        tensors = {}
        for tensor in reader.tensors:
            if tensor.data_offset + tensor.n_bytes > size:
                raise ValueError(f"{tensor.name} is beyond its end")
            if tensor.n_bytes < 1:
                raise ValueError(f"{tensor.name} is empty")
            tensors[tensor.name] = _lazy(path, tensor)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        raise RecipeError(f"{path} is truncated or damaged ({snippet(error)}): download it again") from None
    return fields, tensors


def _value(field: gguf.ReaderField) -> Any:
    numbers = field.types[:1] == [gguf.GGUFValueType.ARRAY] and field.types[-1] != gguf.GGUFValueType.STRING
    return field.parts[field.data[0]] if numbers and field.data else field.contents()


def _lazy(path: Path, tensor: gguf.ReaderTensor) -> LazyTensor:
    kind = tensor.tensor_type
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    read = functools.partial(_tensor, path, tensor.name, kind, int(tensor.data_offset), int(tensor.n_bytes), shape)
    return LazyTensor(tensor.name, shape, FLOATS.get(kind, torch.float32), read)


def _tensor(
    path: Path, name: str, kind: gguf.GGMLQuantizationType, offset: int, size: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Read, not mapped, so that memory stays that of one tensor; quantized blocks become fp32 some rows at a time."""
    data = np.fromfile(path, dtype=np.uint8, count=size, offset=offset)
    if data.size != size:
        raise RecipeError(f"{path} is truncated: download it again")
    if kind in FLOATS:
        return torch.from_numpy(data).view(FLOATS[kind]).reshape(shape)
    rows = data.reshape(*gguf.quant_shape_to_byte_shape(shape, kind))
    out = torch.empty(shape, dtype=torch.float32)
    try:
        for start in range(0, len(rows), CHUNK_ROWS):
            out[start : start + CHUNK_ROWS] = torch.from_numpy(
                gguf.quants.dequantize(rows[start : start + CHUNK_ROWS], kind)
            )
    except NotImplementedError:
        raise RecipeError(f"{path}: {name} is stored as {kind.name}, which the gguf library cannot decode") from None
    return out


def _config(fields: dict[str, Any], tensors: dict[str, LazyTensor], path: Path) -> dict[str, Any]:
    """LlamaConfig's keywords."""
    heads = _number(fields, "llama.attention.head_count", path)
    config = {
        "vocab_size": tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else 0,
        "hidden_size": _number(fields, "llama.embedding_length", path),
        "intermediate_size": _number(fields, "llama.feed_forward_length", path),
        "num_hidden_layers": min(_number(fields, "llama.block_count", path), 1000),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(fields, "llama.attention.head_count_kv", path, default=heads),
        "rms_norm_eps": _number(fields, "llama.attention.layer_norm_rms_epsilon", path, kind=float),
        "rope_theta": _number(fields, "llama.rope.freq_base", path, default=10000.0, kind=float),
        "max_position_embeddings": _number(fields, "llama.context_length", path),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if "llama.attention.key_length" in fields:
        config["head_dim"] = _number(fields, "llama.attention.key_length", path)
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling == "linear":
        config["rope_scaling"] = {
            "rope_type": "linear",
            "factor": _number(fields, "llama.rope.scaling.factor", path, kind=float),
        }
    elif scaling != "none" or "rope_freqs.weight" in tensors:
        raise RecipeError(
            f"{path} scales its rotary embedding in a way this recipe does not know: convert the original"
        )
    if fields.get("llama.expert_count"):
        raise RecipeError(f"{path} is a mixture of experts, expected a plain LLaMA model")
    return config


def _number(
    fields: dict[str, Any], key: str, path: Path, default: Any = None, kind: type[int] | type[float] = int
) -> Any:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1 << 32:
        raise RecipeError(f"{path}: its metadata has {snippet(repr(value))} for {key}, expected a positive number")
    # stored as fp32: 9.999999747e-06 is meant to be 1e-05
    return float(np.format_float_positional(np.float32(value), unique=True)) if kind is float else value
