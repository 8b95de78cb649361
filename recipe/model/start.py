"""The adapter that a run continues from on other data (`lora.start`): another run's, or one of peft or alpaca-lora.

The run is a new one: its own optimizer, schedule and folder. The parent's hash is among its inputs.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from recipe.checkpoints.adapter import Adapter, read_adapter
from recipe.core.config import Config, Lora
from recipe.core.errors import RecipeError, UsageError
from recipe.core.manifest import check_inputs, check_intact, hash_inputs
from recipe.core.run import Run
from recipe.core.text import say
from recipe.model.adapter import add_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM


def hash_start(config: Config) -> dict[str, str]:
    """The parent's hash, for the run's inputs; empty where the run starts with a new adapter.

    Raises RecipeError if the parent is altered, unfinished, of another base, or not a plain LoRA adapter; UsageError
    if its settings are not those of the config.
    """
    if not config.lora.start:
        return {}
    folder = Path(config.lora.start)
    if _is_run(folder):
        check_intact(folder)
        check_inputs(folder, {"base": Path(config.base.path)})
        parent = Run(folder).config()
        if parent.corpus.template != config.corpus.template:
            say(
                f"{folder} was trained with the template {parent.corpus.template}, this run uses "
                f"{config.corpus.template}: the model will answer to the new one"
            )
    _check_settings(config.lora, read_adapter(_adapter_folder(folder)), folder)
    return hash_inputs({"start": folder})


def continue_adapter(model: "LlamaForCausalLM", lora: Lora, seed: int) -> "PeftModel":
    """The adapter of `lora.start` on `model`, to be trained further. The seed is set as for a new one.

    Raises RecipeError if its layers are not those of this base.
    """
    folder = Path(lora.start)
    parent = read_adapter(_adapter_folder(folder))
    tuned = add_adapter(model, lora, seed, parent.rslora)
    own = {_weight_name(name): parameter for name, parameter in tuned.named_parameters() if ".lora_" in name}
    found = {(name, half): part for name, pair in parent.factors.items() for half, part in zip("BA", pair, strict=True)}
    if odd := own.keys() ^ found.keys():
        name, _ = min(odd)
        raise RecipeError(
            f"only one of {folder} and this base has an adapted layer {name}: the adapter belongs to another base, or "
            "leaves out layers; choose another lora.start"
        )
    with torch.no_grad():
        for key, parameter in own.items():
            if parameter.shape != found[key].shape:
                raise RecipeError(
                    f"the {key[1]} of {key[0]} in {folder} is {list(found[key].shape)}, that of this base is "
                    f"{list(parameter.shape)}: the adapter belongs to another base"
                )
            parameter.copy_(found[key])
    say(f"continue from the adapter of {folder}, with a new optimizer")
    return tuned


def _check_settings(lora: Lora, parent: Adapter, folder: Path) -> None:
    """Raises UsageError unless the config says what the adapter is: a run's config must replay it."""
    modules = {name.split(".")[-2] for name in parent.factors}
    found = {"rank": parent.rank, "alpha": parent.alpha, "target_modules": sorted(modules)}
    wanted = dataclasses.asdict(lora) | {"target_modules": sorted(lora.target_modules)}
    for key, value in found.items():
        if wanted[key] != value:
            raise UsageError(f"lora.{key} is {wanted[key]}, but the adapter in {folder} has {value}: set it to that")


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file()


def _adapter_folder(folder: Path) -> Path:
    return Run(folder).adapter if _is_run(folder) else folder


def _weight_name(name: str) -> tuple[str, str]:
    """peft's name of a parameter -> (the weight that it changes, "A" or "B")."""
    module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
    return f"{module}.weight", rest[0]
