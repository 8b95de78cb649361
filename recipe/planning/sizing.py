"""A config as the memory model sees it: shape of the base, largest step, budget. Reads no weights, imports no torch."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from recipe.core import config as configs
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.pascal.constants import layer_ranges, recomputed_by_gpu
from recipe.planning.hardware import P100_BUDGET
from recipe.planning.memory import Estimate, Shape, Step, estimate_by_gpu, estimate_memory, fewest_recomputed

CGROUP = Path("/sys/fs/cgroup")  # of a container
CPU_WEIGHTS = 1e9  # a larger base may fit into the memory of a large machine, but a step on a CPU takes minutes
# The bases that this recipe is meant for, and that of the demo.
KNOWN = {
    "7b": Shape(4096, 11008, 32, 32, 32, 32000),
    "13b": Shape(5120, 13824, 40, 40, 40, 32000),
    "30b": Shape(6656, 17920, 60, 52, 52, 32000),  # Meta's name for 33 billion weights
    "135m": Shape(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
}


@dataclass(frozen=True)
class MemoryPlan:
    """The largest step of a run, the number of recomputed layers, and the resulting peak against a budget."""

    shape: Shape
    origin: str  # where the shape comes from, for people
    step: Step
    recomputed: int  # decoder layers with activation checkpointing
    estimate: Estimate
    budget: int  # bytes

    @property
    def fits(self) -> bool:
        return self.estimate.peak <= self.budget

    @property
    def by_gpu(self) -> list[tuple[range, Estimate]]:
        """(its decoder layers, its peak) for each GPU that shares the base's layers: one, or those of base.split."""
        layers = layer_ranges(self.shape.num_hidden_layers, self.step.split)
        return list(zip(layers, estimate_by_gpu(self.shape, self.step, self.recomputed), strict=True))

    @property
    def fullest(self) -> tuple[Shape, int]:
        """(the shape of what the fullest GPU holds, its number of recomputed layers)."""
        gpu, (layers, _) = max(enumerate(self.by_gpu), key=lambda item: item[1][1].peak)
        counts = recomputed_by_gpu(self.shape.num_hidden_layers, self.step.split, self.recomputed)
        return dataclasses.replace(self.shape, num_hidden_layers=len(layers)), counts[gpu]

    @property
    def fewest(self) -> int | None:
        """The fewest recomputed layers that fit; None if none do."""
        return fewest_recomputed(self.shape, self.step, self.budget)


def plan_memory(
    config: Config, budget: int = P100_BUDGET, cuda: bool = True, size: str | None = None, half: bool = True
) -> MemoryPlan:
    """The memory plan of `config` on a device with `budget` bytes for a step; `size` names a known shape.

    half: whether a GPU computes in fp16.

    Raises UsageError: an unknown shape, a target module or a number of layers that the base does not have, numbers
    that contradict each other. RecipeError: a config.json that is not a LLaMA's.
    """
    check_numbers(config)
    shape, origin = read_shape(config, size)
    check_targets(config, shape)
    if config.base.split > shape.num_hidden_layers:
        raise UsageError(
            f"base.split is {config.base.split}, expected at most {shape.num_hidden_layers}, the layers of the base; "
            "lower it"
        )
    return plan_shape(config, shape, budget, cuda, origin, half)


def plan_shape(
    config: Config,
    shape: Shape,
    budget: int = P100_BUDGET,
    cuda: bool = True,
    origin: str = "",
    half: bool = True,
) -> MemoryPlan:
    """`plan_memory` for a shape that is already known, without its checks."""
    step = build_step(config, cuda, half)
    recomputed = resolve_recompute(config, shape, step, budget)
    return MemoryPlan(shape, origin, step, recomputed, estimate_memory(shape, step, recomputed), budget)


def build_step(config: Config, cuda: bool = True, half: bool = True) -> Step:
    """The largest step of the run: a full pack with a loss at every position."""
    return Step(
        tokens=config.train.micro_batch_tokens,
        trained=config.train.micro_batch_tokens,
        rank=config.lora.rank,
        targets=config.lora.target_modules,
        dropout=config.lora.dropout > 0,
        precision=config.base.precision,
        optimizer=config.train.optimizer,
        cuda=cuda,
        fp16_accumulation=cuda and half and config.train.matmul_accumulation == "fp16",
        fp16_arithmetic=half,
        split=config.base.split,
    )


def resolve_recompute(config: Config, shape: Shape, step: Step, budget: int) -> int:
    """`train.recompute` as a number of layers: auto is the fewest that fit into `budget` bytes, or all if none do.

    Raises UsageError if the base has fewer layers.
    """
    layers, value = shape.num_hidden_layers, config.train.recompute
    if isinstance(value, str):
        fewest = fewest_recomputed(shape, step, budget)
        return layers if fewest is None else fewest
    if not -1 <= value <= layers:
        raise UsageError(f"train.recompute is {value}, expected -1 (all) to {layers}, the number of layers of the base")
    return layers if value == -1 else value


def read_shape(config: Config, size: str | None = None) -> tuple[Shape, str]:
    """(shape, where it comes from): the base's config.json if it exists, else the known `size`, else the base's name.

    Raises UsageError if none of them tells the shape, RecipeError if config.json is not a LLaMA's.
    """
    path = Path(configs.required(config, "base.path"))
    file = path / "config.json"
    if size is None and file.is_file():
        return _parse_shape(file), str(file)
    named = size or next((name for name in KNOWN if re.search(rf"(?<!\d){name}", path.name.lower())), None)
    if named is None:
        raise UsageError(
            f"{path} does not exist, so its shape is unknown: convert it first, or pass --shape 7b, 13b or 30b"
        )
    origin = f"a LLaMA of {named.upper()}" + ("" if size else f", by the name of base.path = {path}: not converted yet")
    return KNOWN[named], origin


def _parse_shape(file: Path) -> Shape:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        values.setdefault("tie_word_embeddings", False)
        shape = Shape(**{item.name: values[item.name] for item in dataclasses.fields(Shape)})
        sizes = [value for name, value in vars(shape).items() if name != "tie_word_embeddings"]
        if not all(type(value) is int and value > 0 for value in sizes):
            raise ValueError("a size is not a positive integer")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{file} is not the config of a LLaMA ({error!r}); convert the base again") from None
    return shape


def known_shape(config: Config) -> Shape | None:
    """The shape of the base; None if neither its config.json nor its name tells it."""
    try:
        return read_shape(config)[0]
    except RecipeError:
        return None


def check_numbers(config: Config) -> None:
    """Check combinations of fields; the range of each field is checked when it is loaded. Raises UsageError."""
    train = config.train
    if train.micro_batch_tokens < config.corpus.max_length:
        raise UsageError(
            f"train.micro_batch_tokens is {train.micro_batch_tokens}, expected at least corpus.max_length = "
            f"{config.corpus.max_length}, the longest conversation; raise it, or prepare a shorter corpus"
        )
    if (train.epochs <= 0 and not config.lora.start) or train.gradient_accumulation_steps < 1:
        raise UsageError(
            f"train.epochs is {train.epochs} and train.gradient_accumulation_steps "
            f"{train.gradient_accumulation_steps}, expected both above 0; raise them"
        )
    if (train.keep == "best" or train.patience) and not train.eval_steps:
        setting = 'keep is "best"' if train.keep == "best" else f"patience is {train.patience}"
        raise UsageError(
            f"train.{setting} and train.eval_steps is 0, expected validations during the run to choose from; set "
            "train.eval_steps"
        )
    if config.lora.rank < 1 or config.corpus.max_length < 1:
        raise UsageError(
            f"lora.rank is {config.lora.rank} and corpus.max_length {config.corpus.max_length}, expected both "
            "above 0; raise them"
        )
    if train.matmul_accumulation == "fp16" and config.base.precision != "int8":
        raise UsageError(
            f"train.matmul_accumulation is fp16 with base.precision = {config.base.precision}, expected int8: only "
            "the int8 matmuls are this recipe's own (bitsandbytes computes nf4); change one of the two"
        )


def check_targets(config: Config, shape: Shape) -> None:
    """Raises UsageError if lora.target_modules names a layer that a LLaMA does not have."""
    if unknown := set(config.lora.target_modules) - shape.linears().keys():
        raise UsageError(f"lora.target_modules: no {min(unknown)!r} in a LLaMA; it has {', '.join(shape.linears())}")


def explain_no_cpu(config: Config, shape: Shape | None) -> str:
    """Why this run needs a GPU, and what to do without one; empty if a CPU is enough."""
    if shape and shape.linear_parameters() >= CPU_WEIGHTS:
        return (
            f"{config.name} trains on {shape.linear_parameters() / 1e9:.1f} billion weights and this machine has only "
            "a CPU, expected a CUDA GPU: the run would take months; `make doctor` says why no GPU was found, and "
            "recipe/configs/demo.toml runs without one"
        )
    if config.train.optimizer == "adamw8bit":
        return (
            "train.optimizer is adamw8bit on a CPU, expected a CUDA GPU: bitsandbytes has 8-bit optimizers for CUDA "
            "only; set train.optimizer = adamw"
        )
    if config.base.precision == "nf4":
        return (
            "base.precision is nf4 on a CPU, expected a CUDA GPU: bitsandbytes has 4-bit kernels for CUDA only; set "
            "base.precision = int8"
        )
    if config.train.matmul_accumulation == "fp16":
        return (
            "train.matmul_accumulation is fp16 on a CPU, expected a CUDA GPU: only cuBLAS accumulates in fp16; set "
            "train.matmul_accumulation = fp32"
        )
    return ""


def available_memory() -> int:
    """Free bytes of main memory, or what is left of the container's limit if that is less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        cache = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, max(0, limit - used + int(cache.get("inactive_file", 0))))
