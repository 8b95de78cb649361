"""Hugging Face folders: config.json with .safetensors or .bin weights, in one file or in shards with an index."""

import functools
from pathlib import Path
from typing import Any

from recipe.checkpoints import hf_config, llama, pth, safetensors, tokenizer
from recipe.checkpoints.files import listed_files, read_object
from recipe.checkpoints.source import LazyTensor, Source
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

# the index names the shards; if a folder has both formats, the one without a pickle is read
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
WRAPPER = "module."  # of torch's DataParallel and DistributedDataParallel
ROTARY_BUFFER = "rotary_emb.inv_freq"  # old transformers saved it; every version recomputes it


def open_source(folder: Path) -> Source:
    """A folder that transformers or a hub repository made. Raises RecipeError: incomplete, damaged, not a LLaMA."""
    repairs: list[str] = []
    config = hf_config.read(folder, repairs)
    weights, tensors = _weights(folder)
    tensors = _plain_names(tensors, config, repairs)
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
    """Whether `folder` has a config.json, or weights under the names of Hugging Face."""
    return any((folder / name).is_file() for name in ("config.json", *WEIGHTS))


def _plain_names(tensors: dict[str, LazyTensor], config: dict[str, Any], repairs: list[str]) -> dict[str, LazyTensor]:
    """The tensors that a LLaMA has: no rotary buffers, no prefix of a wrapper, no head that is the embedding."""
    if all(name.startswith(WRAPPER) for name in tensors):
        repairs.append(f"the names began with {WRAPPER!r}, which a wrapper of the model had left")
        tensors = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(ROTARY_BUFFER)}
    if config.get("tie_word_embeddings"):
        tensors.pop(llama.HEAD, None)
    elif llama.HEAD not in tensors and llama.EMBEDDING in tensors:
        config["tie_word_embeddings"] = True
        repairs.append(f"there is no {llama.HEAD}: the output layer is taken as tied to the embedding")
    return tensors


def _weights(folder: Path) -> tuple[list[Path], dict[str, LazyTensor]]:
    """The files that hold the weights, in a fixed order, and the tensors in them."""
    listed = listed_files(folder)
    names = [name for name in WEIGHTS if listed is None or name in listed]
    first = next((folder / name for name in names if (folder / name).is_file()), None)
    if first is None:
        raise RecipeError(f"{folder} has a config.json but no weights: expected one of {', '.join(WEIGHTS)}")
    if first.suffix != ".json":
        return [first], _file(first)
    index = read_object(first).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise RecipeError(f"{first} has no weight_map: download it again")
    tensors: dict[str, LazyTensor] = {}
    shards = sorted(set(index.values()))
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise RecipeError(f"{first} names {snippet(shard)}, which is not a file beside it: it is refused")
        held = _file(folder / shard)
        for name in (name for name, place in index.items() if place == shard):
            if name not in held:
                raise RecipeError(
                    f"{folder / shard} lacks {snippet(name)}, which its index promises: download it again"
                )
            tensors[name] = held[name]
    return [first, *(folder / shard for shard in shards)], tensors


def _file(path: Path) -> dict[str, LazyTensor]:
    return safetensors.open_file(path) if path.suffix == ".safetensors" else pth.read(path)
