"""Hugging Face folders: config.json with .safetensors or .bin weights, in one file or in shards with an index."""

import functools
from pathlib import Path
from typing import Any

from recipe.checkpoints import llama, pth, safetensors, tokenizer
from recipe.checkpoints.files import listed_files, read_object
from recipe.checkpoints.source import LazyTensor, Source
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

# the index names the shards; where both formats lie in one folder, the one that needs no pickle is read
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
WHOLE_NUMBERS = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 16,
}
ROTARY_BUFFER = "rotary_emb.inv_freq"  # old transformers saved it; every version recomputes it


def open_source(folder: Path) -> Source:
    """A folder that transformers or a hub repository made. Raises RecipeError: incomplete, damaged, not a LLaMA."""
    repairs: list[str] = []
    raw = read_object(folder / "config.json")
    config = _config(raw, folder / "config.json", repairs)
    weights, tensors = _weights(folder)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(ROTARY_BUFFER)}
    if config.get("tie_word_embeddings"):
        tensors.pop(llama.HEAD, None)
    settings = [folder / name for name in (*TOKENIZER_FILES, "generation_config.json") if (folder / name).is_file()]
    return Source(
        kind="Hugging Face, " + ("safetensors" if weights[-1].suffix == ".safetensors" else "PyTorch .bin"),
        config=config,
        tensors=tensors,
        files=(folder / "config.json", *weights, *settings),
        tokenizer=functools.partial(tokenizer.from_folder, folder),
        repairs=repairs,
    )


def is_folder(folder: Path) -> bool:
    """Whether `folder` looks like one of Hugging Face's: it has a config.json, or weights under their names."""
    return any((folder / name).is_file() for name in ("config.json", *WEIGHTS))


def _config(raw: dict[str, Any], path: Path, repairs: list[str]) -> dict[str, Any]:
    """LlamaConfig's keywords, of a config.json of any transformers version up to 5."""
    if raw.get("model_type") != "llama":
        raise RecipeError(f"{path}: model_type is {snippet(repr(raw.get('model_type')))}, expected 'llama'")
    if "quantization_config" in raw:
        raise RecipeError(f"{path}: the weights are quantised already; convert the original fp16 checkpoint")
    for key, most in WHOLE_NUMBERS.items():
        if type(raw.get(key)) is not int or not 0 < raw[key] <= most:
            raise RecipeError(f"{path}: {key} is {snippet(repr(raw.get(key)))}, expected a whole number up to {most:,}")
    dropped = (
        "architectures",
        "auto_map",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "model_type",
        "_name_or_path",
    )
    config = {key: value for key, value in raw.items() if key not in (*dropped, "rope_parameters")}
    # transformers 5 moved the rotary settings here; 4.49 would silently fall back to theta 10000
    rope = raw.get("rope_parameters")
    if isinstance(rope, dict):
        config["rope_theta"] = rope.get("rope_theta", 10000.0)
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if "max_sequence_length" in config and "max_position_embeddings" not in config:
        config["max_position_embeddings"] = config.pop("max_sequence_length")
    if config.get("pad_token_id") == -1:
        config["pad_token_id"] = None
        repairs.append("config.json: pad_token_id was -1, which is no token, now the tokenizer's")
    eos = read_object(path.with_name("generation_config.json")).get("eos_token_id") if _has_generation(path) else None
    if isinstance(eos, list) and all(type(token) is int for token in eos):
        config["eos_token_id"] = eos
    config["num_key_value_heads"] = config.get("num_key_value_heads") or config["num_attention_heads"]
    return config


def _has_generation(path: Path) -> bool:
    return path.with_name("generation_config.json").is_file()


def _weights(folder: Path) -> tuple[list[Path], dict[str, LazyTensor]]:
    """The files that hold the weights, in a fixed order, and the tensors in them."""
    listed = listed_files(folder)
    names = [name for name in WEIGHTS if listed is None or name in listed]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise RecipeError(f"{folder} has a config.json but no weights: expected one of {', '.join(WEIGHTS)}")
    if found.suffix != ".json":
        return [found], _file(found)
    index = read_object(found).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise RecipeError(f"{found} has no weight_map: download it again")
    tensors: dict[str, LazyTensor] = {}
    shards = sorted(set(index.values()))
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise RecipeError(f"{found} names {snippet(shard)}, which is not a file beside it: it is refused")
        held = _file(folder / shard)
        for name in (name for name, place in index.items() if place == shard):
            if name not in held:
                raise RecipeError(
                    f"{folder / shard} lacks {snippet(name)}, which its index promises: download it again"
                )
            tensors[name] = held[name]
    return [found, *(folder / shard for shard in shards)], tensors


def _file(path: Path) -> dict[str, LazyTensor]:
    return safetensors.open_file(path) if path.suffix == ".safetensors" else pth.read(path)
