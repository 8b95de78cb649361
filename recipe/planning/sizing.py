"""A config as the memory model sees it: the base's shape, the largest step, what a P100 has. Reads no weights."""

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.core import config as configs
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from recipe.planning.memory import Shape, Step

MIB = 1 << 20
CARD_MIB = 16_280  # what the driver reports of a P100's 16 GB
CONTEXT_MIB = 500  # the CUDA context and cuBLAS: assumed, 300 to 500 on other cards
MARGIN_MIB = 1500  # what the allocator loses between blocks: assumed
P100_BUDGET = (CARD_MIB - CONTEXT_MIB - MARGIN_MIB) * MIB  # bytes that a step may have there
CPU_WEIGHTS = 1e9  # a base beyond it may fit a large machine's memory, but a step on a CPU takes minutes
# (hidden, intermediate, layers, heads, key-value heads, vocabulary) of the bases this recipe is meant for
KNOWN = {"7b": (4096, 11008, 32, 32, 32, 32000), "13b": (5120, 13824, 40, 40, 40, 32000)}


def read_shape(config: Config, size: str | None) -> tuple["Shape", str]:
    """(shape, where it is from): the base's config.json if it is there, else a known size, else its name."""
    from recipe.planning.memory import Shape

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


def known_shape(config: Config) -> "Shape | None":
    """None where neither the weights nor their name tell it."""
    try:
        return read_shape(config, None)[0]
    except RecipeError:
        return None


def check_numbers(config: Config) -> None:
    """What no later error would say as clearly. Raises UsageError."""
    train = config.train
    if train.micro_batch_tokens < config.corpus.max_length:
        raise UsageError(
            f"train.micro_batch_tokens is {train.micro_batch_tokens}, expected room for the longest "
            f"conversation, corpus.max_length = {config.corpus.max_length}; raise it, or prepare a shorter corpus"
        )
    if train.epochs <= 0 or train.gradient_accumulation_steps < 1:
        raise UsageError(
            f"train.epochs is {train.epochs} and train.gradient_accumulation_steps "
            f"{train.gradient_accumulation_steps}, expected both above 0; raise them"
        )
    if config.lora.rank < 1 or config.corpus.max_length < 1:
        raise UsageError(
            f"lora.rank is {config.lora.rank} and corpus.max_length {config.corpus.max_length}, expected both "
            "above 0; raise them"
        )
    if train.matmul_accumulation == "fp16" and config.base.precision != "int8":
        raise UsageError(
            f"train.matmul_accumulation is fp16 with base.precision = {config.base.precision}, expected int8: only "
            "those matmuls are this recipe's own (bitsandbytes does nf4's); change one of the two"
        )


def why_not_cpu(config: Config, shape: "Shape | None") -> str:
    """What only a card can do of this run, and what to do without one; empty where a CPU is enough."""
    if shape and shape.linear_parameters() >= CPU_WEIGHTS:
        return (
            f"{config.name} trains on {shape.linear_parameters() / 1e9:.1f} billion weights and there is only a cpu, "
            "expected a CUDA card: a step would take minutes and the run months; `make doctor` says why no card is "
            "found, and recipe/configs/demo.toml runs without one"
        )
    if config.train.optimizer == "adamw8bit":
        return (
            "train.optimizer is adamw8bit on a cpu, expected a CUDA card: bitsandbytes has 8-bit moments for that "
            "alone; set train.optimizer = adamw"
        )
    if config.base.precision == "nf4":
        return (
            "base.precision is nf4 on a cpu, expected a CUDA card: bitsandbytes has 4-bit kernels for that alone; set "
            "base.precision = int8"
        )
    if config.train.matmul_accumulation == "fp16":
        return (
            "train.matmul_accumulation is fp16 on a cpu, expected a CUDA card: cuBLAS has fp16 sums for that alone; "
            "set train.matmul_accumulation = fp32"
        )
    return ""


def check_targets(config: Config, shape: "Shape") -> None:
    """Raises UsageError where an adapter is meant for a layer that a LLaMA does not have."""
    if unknown := set(config.lora.target_modules) - shape.linears().keys():
        raise UsageError(f"lora.target_modules: no {min(unknown)} in a LLaMA, it has {', '.join(shape.linears())}")


def recomputed_layers(config: Config, shape: "Shape", step: "Step", budget: int) -> int:
    """train.recompute as a number of layers that this base has.

    auto is the fewest with which `step` peaks within `budget` bytes, or all where even those do not fit.
    """
    from recipe.planning.memory import fewest_recomputed

    layers, asked = shape.num_hidden_layers, config.train.recompute
    if isinstance(asked, str):
        fewest = fewest_recomputed(shape, step, budget)
        return layers if fewest is None else fewest
    if not -1 <= asked <= layers:
        raise UsageError(f"train.recompute is {asked}, expected -1 (all) to {layers}, the base's number of layers")
    return layers if asked == -1 else asked


def available_memory() -> int:
    """Bytes that the kernel would give now, or the container's limit where that is lower."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(free, int(text)) if text.isdecimal() else free


def step_of(config: Config, half: bool = True) -> "Step":
    """The largest step of the run: a full pack, a loss at every position."""
    from recipe.planning.memory import Step

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
        fp16_sums=half and config.train.matmul_accumulation == "fp16",
    )


def with_precision(step: "Step", precision: str) -> "Step":
    """The same step on a base held otherwise."""
    return dataclasses.replace(step, precision=precision)
