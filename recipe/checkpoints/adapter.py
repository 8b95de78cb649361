"""LoRA adapters as peft saves them: settings checked, weights read without executing anything.

A folder has adapter_config.json and adapter_model.safetensors, or adapter_model.bin as alpaca-lora's does.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoints import pth, safetensors
from recipe.checkpoints.files import read_object
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

Delta = tuple[torch.Tensor, torch.Tensor]  # (scaled B [out, r], A [r, in]), fp32
SETTINGS = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # what peft puts before a module's name
# what an adapter may not ask for, and why W + BA would then be another model
REFUSED = {
    "modules_to_save": "it replaces whole layers",
    "use_dora": "DoRA also rescales the weights",
    "lora_bias": "it adds a bias",
    "fan_in_fan_out": "its layers are transposed",
    "rank_pattern": "its layers have ranks of their own",
    "alpha_pattern": "its layers have scales of their own",
    "layer_replication": "it repeats layers",
    "trainable_token_indices": "it replaces embeddings",
    "use_qalora": "it groups its inputs",
}
CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "eva", "orthogonal")  # of init_lora_weights


def read_deltas(folder: Path) -> dict[str, Delta]:
    """Weight name -> (scale * B [out, r], A [r, in]), both fp32, for every layer that the adapter changes.

    The scale is alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732). Raises RecipeError: not a LoRA adapter, a
    setting that W + BA cannot express (by its name), an A without its B, a value that is not finite.
    """
    folder = Path(folder)
    scale = _scale(read_object(folder / SETTINGS), folder / SETTINGS)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise RecipeError(f"{folder} holds neither {' nor '.join(FILES)}: it is not a finished adapter")
    tensors = safetensors.open_file(file) if file.suffix == ".safetensors" else pth.read(file)
    halves = {_key(name, file): tensor for name, tensor in tensors.items()}
    deltas = {}
    for name, half in halves:
        if half == "A":
            deltas[name] = _delta(name, halves, scale, file)
    if not deltas or len(halves) != 2 * len(deltas):
        raise RecipeError(f"{file} is not a whole adapter: {len(tensors)} tensors are not pairs of an A and a B")
    return deltas


def _scale(settings: Mapping[str, Any], path: Path) -> float:
    if settings.get("peft_type", "LORA") != "LORA":
        raise RecipeError(f"{path}: peft_type is {snippet(repr(settings['peft_type']))}, expected 'LORA'")
    for key, why in REFUSED.items():
        if settings.get(key):
            raise RecipeError(f"{path} sets {key}: {why}, which is not supported here; use peft to apply it")
    if settings.get("bias", "none") != "none":
        raise RecipeError(
            f"{path} sets bias to {snippet(repr(settings['bias']))}, expected 'none': use peft to apply it"
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise RecipeError(f"{path} sets init_lora_weights to {snippet(start)}, which changes the base itself: use peft")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise RecipeError(f"{path}: r is {snippet(repr(rank))} and lora_alpha {snippet(repr(alpha))}, expected numbers")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _key(name: str, file: Path) -> tuple[str, str]:
    """(weight name in the base, "A" or "B") of a tensor of the adapter; peft puts an adapter's name in the middle."""
    module, found, rest = name.removeprefix(PREFIX).partition(".lora_")
    half, _, leaf = rest.partition(".")
    if not found or half not in ("A", "B") or leaf not in ("weight", "default.weight"):
        raise RecipeError(
            f"{file} holds {snippet(name)}, which is not part of a plain LoRA adapter: use peft to apply it"
        )
    return f"{module}.weight", half


def _delta(name: str, halves: Mapping[tuple[str, str], LazyTensor], scale: float, file: Path) -> Delta:
    a, b = halves[name, "A"], halves.get((name, "B"))
    if b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise RecipeError(f"{file} is not a whole adapter: the A of {snippet(name)} has no B that fits it")
    delta = (scale * b.read().float(), a.read().float())
    if not all(factor.isfinite().all() for factor in delta):
        raise RecipeError(f"{file} holds inf or NaN for {snippet(name)}: its training had failed")
    return delta
