"""config.json and generation_config.json: read and checked against what a LLaMA can have, and written."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipe.checkpoints.files import read_object
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Check = Callable[[Any], bool]


def _whole(most: int) -> Check:
    return lambda value: type(value) is int and 0 < value <= most


def _number(least: float, most: float) -> Check:
    """Above `least`, at most `most`; NaN is neither."""
    return lambda value: type(value) in (int, float) and least < value <= most


def _flag(value: Any) -> bool:
    return type(value) is bool


def _ids(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return len(values) <= 64 and all(type(entry) is int and -1 <= entry < 1 << 24 for entry in values)


# What LlamaConfig knows: (check, what is expected). Anything else in a config.json is left out: transformers acts on
# keys such as num_labels, attn_implementation or torchscript, and none of them describes a LLaMA.
REQUIRED: dict[str, tuple[Check, str]] = {
    "vocab_size": (_whole(1 << 24), "a whole number up to 16,777,216"),
    "hidden_size": (_whole(1 << 20), "a whole number up to 1,048,576"),
    "intermediate_size": (_whole(1 << 20), "a whole number up to 1,048,576"),
    "num_hidden_layers": (_whole(1000), "a whole number up to 1,000"),
    "num_attention_heads": (_whole(1 << 16), "a whole number up to 65,536"),
}
OPTIONAL: dict[str, tuple[Check, str]] = {
    "num_key_value_heads": (_whole(1 << 16), "a whole number up to 65,536"),
    "head_dim": (_whole(1 << 14), "a whole number up to 16,384"),
    "max_position_embeddings": (_whole(1 << 28), "a whole number up to 268,435,456"),
    "rms_norm_eps": (_number(0, 1), "a number above 0, at most 1"),
    "rope_theta": (_number(0, 1e12), "a number above 0"),
    "initializer_range": (_number(-1e-9, 1e3), "a number from 0"),
    "attention_dropout": (_number(-1e-9, 1), "a number from 0 to 1"),
    "pretraining_tp": (_whole(1 << 10), "a whole number"),
    "attention_bias": (_flag, "true or false"),
    "mlp_bias": (_flag, "true or false"),
    "tie_word_embeddings": (_flag, "true or false"),
    "use_cache": (_flag, "true or false"),
    "bos_token_id": (_ids, "a token id"),
    "eos_token_id": (_ids, "a token id or a list of them"),
    "pad_token_id": (_ids, "a token id"),
}
NULLABLE = ("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id", "pad_token_id")
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
ROPE_NUMBERS = {
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
}


def read(folder: Path, repairs: list[str]) -> dict[str, Any]:
    """LlamaConfig's keywords, of a config.json of any transformers version up to 5; `repairs` gets what was corrected.

    Raises RecipeError on another model, and on a value that a LLaMA cannot have.
    """
    path = folder / "config.json"
    raw = read_object(path)
    if raw.get("model_type") != "llama":
        raise RecipeError(f"{path}: model_type is {snippet(repr(raw.get('model_type')))}, expected 'llama'")
    if "quantization_config" in raw:
        raise RecipeError(f"{path}: the weights are quantized already; convert the original fp16 checkpoint")
    if raw.get("hidden_act", "silu") != "silu":
        raise RecipeError(
            f"{path}: hidden_act is {snippet(repr(raw['hidden_act']))}, expected 'silu': LLaMA's feed-forward layer is "
            "computed with no other function here, take a plain LLaMA model"
        )
    raw = _older_and_newer_keys(raw)
    if raw.get("pad_token_id") == -1:
        raw["pad_token_id"] = None
        repairs.append("config.json: pad_token_id was -1, which is not a token, now the tokenizer's")
    config: dict[str, Any] = {"hidden_act": "silu"} if "hidden_act" in raw else {}
    for key, (holds, expected) in {**REQUIRED, **OPTIONAL}.items():
        if key not in REQUIRED and (key not in raw or (key in NULLABLE and raw[key] is None)):
            continue
        if not holds(raw.get(key)):
            raise RecipeError(f"{path}: {key} is {snippet(repr(raw.get(key)))}, expected {expected}: it is damaged")
        config[key] = raw[key]
    if raw.get("rope_scaling") is not None:
        config["rope_scaling"] = _rope_scaling(raw["rope_scaling"], path)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    _check_heads(config, path)
    if (ends := _generation_ends(folder)) is not None:
        config["eos_token_id"] = ends
    return config


def _older_and_newer_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4.49: the first conversions and transformers 5 have other ones."""
    config = dict(raw)
    # transformers 5 moved the rotary settings here; 4.49 would silently use theta 10000
    rope = config.pop("rope_parameters", None)
    if isinstance(rope, dict):
        config["rope_theta"] = rope.get("rope_theta", 10000.0)
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if "max_sequence_length" in config and "max_position_embeddings" not in config:
        config["max_position_embeddings"] = config["max_sequence_length"]
    return config


def _rope_scaling(value: Any, path: Path) -> dict[str, Any]:
    """Raises RecipeError unless it is a table of a known kind with finite positive numbers."""
    kind = value.get("rope_type", value.get("type")) if isinstance(value, dict) else None
    good = kind in ROPE_TYPES
    for key, entry in value.items() if isinstance(value, dict) else ():
        if key in ROPE_NUMBERS:
            good = good and _number(0, 1e12)(entry)
        elif key in ("long_factor", "short_factor"):
            good = good and isinstance(entry, list) and len(entry) <= 1 << 14 and all(map(_number(0, 1e12), entry))
        else:
            good = good and (key not in ("rope_type", "type") or entry in ROPE_TYPES)
    if not good:
        raise RecipeError(
            f"{path}: rope_scaling is {snippet(repr(value))}, expected a type of {', '.join(ROPE_TYPES)} and its "
            "positive numbers: it is damaged"
        )
    return {key: entry for key, entry in value.items() if type(entry) in (str, int, float, list)}


def _check_heads(config: Mapping[str, Any], path: Path) -> None:
    heads, groups, hidden = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if heads % groups or ("head_dim" not in config and hidden % heads) or config.get("head_dim", hidden // heads) % 2:
        raise RecipeError(
            f"{path}: {heads} heads, {groups} key-value heads and hidden_size {hidden} do not fit together: expected "
            "heads of one even size, in groups of one size"
        )


def _generation_ends(folder: Path) -> list[int] | None:
    """The list of end tokens of a generation_config.json (LLaMA 3), if it has one."""
    path = folder / "generation_config.json"
    ends = read_object(path).get("eos_token_id") if path.is_file() else None
    return ends if isinstance(ends, list) and _ids(ends) else None


def write(folder: Path, config: dict[str, Any], tokenizer: "PreTrainedTokenizerFast", dtype: torch.dtype) -> list[str]:
    """Write both files with the special tokens of the tokenizer. Returns what that changed, one sentence each.

    A source's sampling settings are left out: transformers refuses several published ones, and every stage here sets
    its own. A list of end tokens (LLaMA 3) is kept where the tokenizer's is among them.
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


def copy_generation(base: Path, folder: Path, token_ids: Iterable[int]) -> None:
    """The generation_config.json of a converted model, with these end tokens."""
    shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    add_end_tokens(folder, token_ids)


def add_end_tokens(folder: Path, token_ids: Iterable[int]) -> None:
    """Let a generation end at these tokens too: the end mark of a template need not be the tokenizer's EOS."""
    path = folder / "generation_config.json"
    ends = read_object(path).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if missing := [token_id for token_id in token_ids if token_id not in ends]:
        settings = {**read_object(path), "eos_token_id": [*ends, *missing]}
        # as transformers writes it
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
