"""A config as the memory model sees it: the base's shape, the largest step, what a P100 has. Reads no weights."""

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from recipe import config as configs
from recipe.config import Config
from recipe.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from recipe.pascal.memory import Shape, Step

MIB = 1 << 20
CARD_MIB = 16_280  # what the driver reports of a P100's 16 GB
CONTEXT_MIB = 500  # the CUDA context and cuBLAS: assumed, 300 to 500 on other cards
MARGIN_MIB = 500  # what the allocator loses between blocks: assumed
# (hidden, intermediate, layers, heads, key-value heads, vocabulary) of the bases this recipe is meant for
KNOWN = {"7b": (4096, 11008, 32, 32, 32, 32000), "13b": (5120, 13824, 40, 40, 40, 32000)}


def read_shape(config: Config, size: str | None) -> tuple["Shape", str]:
    """(shape, where it is from): the base's config.json if it is there, else a known size, else its name."""
    from recipe.pascal.memory import Shape

    path = Path(configs.required(config, "base.path"))
    if size is None and (path / "config.json").is_file():
        try:
            found = json.loads((path / "config.json").read_text(encoding="utf-8"))
            found.setdefault("num_key_value_heads", found["num_attention_heads"])
            found.setdefault("tie_word_embeddings", False)
            return Shape(**{item.name: found[item.name] for item in dataclasses.fields(Shape)}), f"{path}/config.json"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"{path}/config.json is not a LLaMA's ({error!r}); convert the base again") from None
    named = size or next((name for name in KNOWN if re.search(rf"(?<!\d){name}", path.name.lower())), None)
    if named is None:
        raise UsageError(f"{path} is not there, so its shape is unknown: convert it first, or say --shape 7b or 13b")
    origin = f"a LLaMA of {named.upper()}" + ("" if size else f", which base.path = {path} names: not there yet")
    return Shape(*KNOWN[named]), origin


def check_targets(config: Config, shape: "Shape") -> None:
    """Raises UsageError where an adapter is meant for a layer that a LLaMA does not have."""
    if unknown := set(config.lora.target_modules) - shape.linears().keys():
        raise UsageError(f"lora.target_modules: no {min(unknown)} in a LLaMA, it has {', '.join(shape.linears())}")


def recomputed_layers(config: Config, shape: "Shape") -> int:
    """train.recompute as a number of layers that this base has."""
    layers, asked = shape.num_hidden_layers, config.train.recompute
    if not -1 <= asked <= layers:
        raise UsageError(f"train.recompute is {asked}, expected -1 (all) to {layers}, the base's number of layers")
    return layers if asked == -1 else asked


def step_of(config: Config, half: bool = True) -> "Step":
    """The largest step of the run: a full pack, a loss at every position."""
    from recipe.pascal.memory import Step

    return Step(
        conversations=1,
        length=config.train.micro_batch_tokens,
        trained=config.train.micro_batch_tokens,
        rank=config.lora.rank,
        targets=config.lora.target_modules,
        dropout=config.lora.dropout > 0,
        precision=config.base.precision,
        optimizer=config.train.optimizer,
        half=half,
        on_card=half,
        fp16_sums=half and config.train.accumulate == "fp16",
    )


def with_precision(step: "Step", precision: str) -> "Step":
    """The same step on a base held otherwise."""
    return dataclasses.replace(step, precision=precision)
