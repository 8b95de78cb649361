"""LoRA adapters as peft saves them: settings checked, weights read without executing anything.

A folder has adapter_config.json and adapter_model.safetensors, or adapter_model.bin as alpaca-lora's does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoints import pth, safetensors
from recipe.checkpoints.files import read_object
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

Delta = tuple[torch.Tensor, torch.Tensor]  # (B [out, r], A [r, in]), fp32; B is scaled unless said otherwise
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


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as saved: its settings, and weight name -> (B [out, r], A [r, in]), both fp32 and unscaled."""

    rank: int
    alpha: float
    rslora: bool  # scaled by alpha / sqrt(r) instead of alpha / r (arXiv:2312.03732)
    factors: dict[str, Delta]

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def read_deltas(folder: Path) -> dict[str, Delta]:
    """Weight name -> (scale * B [out, r], A [r, in]), both fp32, for every layer that the adapter changes.

    Raises RecipeError as `read_adapter` does.
    """
    adapter = read_adapter(folder)
    return {name: (adapter.scale * b, a) for name, (b, a) in adapter.factors.items()}


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`.

    Raises RecipeError: not a LoRA adapter, a setting that W + BA cannot express (by its name), an A without its B, a
    value that is not finite.
    """
    folder = Path(folder)
    rank, alpha, rslora = _settings(read_object(folder / SETTINGS), folder / SETTINGS)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise RecipeError(f"{folder} holds neither {' nor '.join(FILES)}: it is not a finished adapter")
    tensors = safetensors.open_file(file) if file.suffix == ".safetensors" else pth.read(file)
    halves = {_key(name, file): tensor for name, tensor in tensors.items()}
    factors = {name: _factors(name, halves, file) for name, half in halves if half == "A"}
    if not factors or len(halves) != 2 * len(factors):
        raise RecipeError(f"{file} is not a whole adapter: {len(tensors)} tensors are not pairs of an A and a B")
    return Adapter(rank, alpha, rslora, factors)


def _settings(settings: Mapping[str, Any], path: Path) -> tuple[int, float, bool]:
    """(rank, alpha, rslora) of adapter_config.json."""
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
    return rank, alpha, bool(settings.get("use_rslora"))


def _key(name: str, file: Path) -> tuple[str, str]:
    """(weight name in the base, "A" or "B") of a tensor of the adapter; peft puts an adapter's name in the middle."""
    module, found, rest = name.removeprefix(PREFIX).partition(".lora_")
    half, _, leaf = rest.partition(".")
    if not found or half not in ("A", "B") or leaf not in ("weight", "default.weight"):
        raise RecipeError(
            f"{file} holds {snippet(name)}, which is not part of a plain LoRA adapter: use peft to apply it"
        )
    return f"{module}.weight", half


def _factors(name: str, halves: Mapping[tuple[str, str], LazyTensor], file: Path) -> Delta:
    a, b = halves[name, "A"], halves.get((name, "B"))
    if b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise RecipeError(f"{file} is not a whole adapter: the A of {snippet(name)} has no B that fits it")
    factors = (b.read().float(), a.read().float())
    if not all(factor.isfinite().all() for factor in factors):
        raise RecipeError(f"{file} holds inf or NaN for {snippet(name)}: its training had failed")
    return factors
