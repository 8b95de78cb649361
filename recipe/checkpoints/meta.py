"""Meta's own checkpoints: consolidated.NN.pth (one per model-parallel rank), params.json, tokenizer.model."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoints import llama, pth, tokenizer
from recipe.checkpoints.files import read_object
from recipe.checkpoints.source import LazyTensor, Source
from recipe.checkpoints.tokenizer import Tokenizer
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

SHARDS = "consolidated.*.pth"
# RowParallelLinear (llama/model.py) cuts its input, columns; ColumnParallelLinear its output, rows
CUT_BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
WHOLE_NUMBERS = {"dim": 1 << 16, "n_layers": 1000, "n_heads": 1 << 16, "n_kv_heads": 1 << 16, "max_seq_len": 1 << 30}
ROTARY_BUFFER = "rope.freqs"  # recomputed by every implementation


def open_source(folder: Path) -> Source:
    """A folder with `consolidated.*.pth` and `params.json`; `tokenizer.model` there or, as Meta ships it, one above.

    Raises RecipeError: a shard or a tensor is missing, shards that do not fit together, unusable params.
    """
    shards = sorted(folder.glob(SHARDS))
    _check_numbering(shards)
    params_path = folder / "params.json"
    tokenizer_files, build_tokenizer = _tokenizer(folder)
    params = _params(params_path)
    ranks = [pth.read(shard) for shard in shards]
    for rank, shard in zip(ranks, shards, strict=True):
        rank.pop(ROTARY_BUFFER, None)
        if rank.keys() != ranks[0].keys():
            raise RecipeError(f"{shard} does not hold the tensors of {shards[0].name}: they are not of one checkpoint")
    merged = {name: _merged([rank[name] for rank in ranks], params["dim"], shards[0].parent) for name in ranks[0]}
    config = _config(params, merged, folder)
    names = {meta: hf for hf, meta in llama.meta_names(config["num_hidden_layers"]).items()}
    tensors = [llama.renamed(tensor, names.get(name, name), config, llama.to_halves) for name, tensor in merged.items()]
    return Source(
        kind=f"Meta, {len(shards)} shard{'s' * (len(shards) > 1)}",
        config=config,
        tensors={tensor.name: tensor for tensor in tensors},
        files=(*shards, params_path, *tokenizer_files),
        tokenizer=build_tokenizer,
    )


def _check_numbering(shards: list[Path]) -> None:
    for number, shard in enumerate(shards):
        if shard.name != f"consolidated.{number:02d}.pth":
            raise RecipeError(
                f"{shard.parent} has {shard.name} but not consolidated.{number:02d}.pth: "
                "a shard is missing, download it again"
            )


def _tokenizer(folder: Path) -> tuple[tuple[Path, ...], Callable[[int], Tokenizer]]:
    """The tokenizer's files, here or one folder up, and what builds it. LLaMA 3 needs its tokenizer.json."""
    for place in (folder, folder.resolve().parent):
        if (place / "tokenizer.json").is_file():
            names = ("tokenizer.json", "tokenizer_config.json")
            files = tuple(place / name for name in names if (place / name).is_file())
            return files, functools.partial(tokenizer.from_folder, place)
        if (place / "tokenizer.model").is_file():
            path = place / "tokenizer.model"
            return (path,), functools.partial(tokenizer.from_sentencepiece_file, path)
    raise RecipeError(f"{folder} has no tokenizer.model, nor has the folder above: put it beside the weights")


def _params(path: Path) -> dict[str, Any]:
    params = read_object(path)
    for key, value in params.items():
        if key in WHOLE_NUMBERS and (type(value) is not int or not 0 < value <= WHOLE_NUMBERS[key]):
            raise RecipeError(f"{path}: expected a whole number for {key}, found {snippet(repr(value))}")
        if key in ("norm_eps", "rope_theta") and (type(value) not in (int, float) or not 0 < value < 1e12):
            raise RecipeError(f"{path}: expected a number for {key}, found {snippet(repr(value))}")
    for key in ("dim", "n_layers", "n_heads"):
        if key not in params:
            raise RecipeError(f"{path} has no {key}: it is not Meta's params.json, or it is damaged")
    if params["dim"] % params["n_heads"]:
        raise RecipeError(f"{path}: dim {params['dim']} is not a multiple of n_heads {params['n_heads']}")
    if params.get("use_scaled_rope"):
        raise RecipeError(f"{path} asks for LLaMA 3.1's scaled rotary embedding: convert Hugging Face's version of it")
    return params


def _config(params: dict[str, Any], merged: dict[str, LazyTensor], folder: Path) -> dict[str, Any]:
    """LlamaConfig's keywords. Sizes that the params leave open (vocab_size -1, ffn) are those of the weights."""
    embedding, gate = merged.get("tok_embeddings.weight"), merged.get("layers.0.feed_forward.w1.weight")
    if embedding is None or gate is None:
        raise RecipeError(f"{folder} lacks the embedding or the first layer: it is not a LLaMA, or it is incomplete")
    norm_eps = params.get("norm_eps", 1e-5)
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": params["dim"],
        "intermediate_size": gate.shape[0],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": norm_eps,
        "rope_theta": params.get("rope_theta", 10000.0),
        # Meta's params do not contain the context length: LLaMA 1 (norm_eps 1e-6) has 2048, LLaMA 2 has 4096
        "max_position_embeddings": params.get("max_seq_len") or (2048 if norm_eps <= 1e-6 else 4096),
        "tie_word_embeddings": "output.weight" not in merged,
    }


def _merged(parts: list[LazyTensor], dim: int, folder: Path) -> LazyTensor:
    """One tensor of the ranks' parts, joined along the axis that model parallelism cut; norms are the same in all."""
    first = parts[0]
    if len(parts) == 1 or len(first.shape) == 1:
        return first
    axis = 0
    if first.name.endswith(CUT_BY_COLUMNS):
        axis = 1
    elif first.name == "tok_embeddings.weight" and first.shape[-1] != dim:
        axis = 1  # LLaMA 1 and 2 cut the embedding by columns, LLaMA 3 by rows
    shape = list(first.shape)
    shape[axis] = sum(part.shape[axis] if len(part.shape) == len(shape) else 0 for part in parts)
    for part in parts:
        if part.dtype != first.dtype or _without(part.shape, axis) != _without(first.shape, axis):
            raise RecipeError(
                f"{folder}: the parts of {first.name} do not fit together: they are not of one checkpoint"
            )
    return LazyTensor(
        first.name, tuple(shape), first.dtype, lambda: torch.cat([part.read() for part in parts], dim=axis)
    )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
