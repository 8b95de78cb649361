"""What a run costs beside memory: several GPUs, money, downloads and disk. By arithmetic."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from recipe.core.config import Config
from recipe.core.files import holds_something
from recipe.planning import memory
from recipe.planning.memory import Shape, Step
from recipe.planning.sizing import MemoryPlan
from recipe.planning.throughput import TimePlan

# Bytes per second between GPUs; both assumed.
LINKS = {"PCIe 3.0 through main memory": 6e9, "1 Gbit/s Ethernet": 0.117e9}
DOWNLOADS = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6}
SPARE_BYTES = 500 << 20  # logs, metrics, and the reserve of a file system


@dataclass(frozen=True)
class Parallel:
    """A run on several GPUs, each with the whole base: pairs are at the lower and the higher matmul rate."""

    gpus: int
    packs: int  # of one GPU in a step: the global batch is the config's
    step_seconds: tuple[float, float]
    all_reduce: dict[str, float]  # link -> seconds a step, for the adapter's gradients in fp32
    hours: list[float] | None  # over the slowest link; None: tokens unknown

    def speedup(self, link: str, alone: float, rate: int) -> float:
        """Times as fast as one GPU, whose step takes `alone` seconds, at the lower (0) or higher (1) rate."""
        return alone / (self.step_seconds[rate] + self.all_reduce[link])


def plan_parallel(config: Config, plan: MemoryPlan, time: TimePlan, gpus: int) -> Parallel:
    """Data parallel on `gpus` GPUs: each computes its share of a step's packs, then the gradients are summed.

    `gpus` divides train.gradient_accumulation_steps.
    """
    total = config.train.gradient_accumulation_steps
    packs = total // gpus
    slow, fast = (time.tokens_per_step / speed * packs / total for speed in time.tokens_per_second)
    size = memory.adapter_parameters(plan.shape, plan.step) * memory.FP32
    moved = 2 * (gpus - 1) / gpus * size  # of a ring: each GPU sends and receives so much
    reduce = {link: moved / rate for link, rate in LINKS.items()}
    slowest = max(reduce.values())
    hours = None if time.steps is None else [time.steps * (step + slowest) / 3600 for step in (slow, fast)]
    return Parallel(gpus, packs, (slow, fast), reduce, hours)


def disk_bytes(config: Config, shape: Shape, step: Step) -> dict[str, int]:
    """Bytes on the disk of a whole run, by what holds them."""

    def weights(precision: str) -> int:
        return memory.weight_bytes(shape, dataclasses.replace(step, precision=precision, fp16_arithmetic=True))

    adapter = memory.adapter_parameters(shape, step)
    checkpoint = adapter * (memory.FP32 + memory.OPTIMIZER_BYTES[config.train.optimizer])
    quantized = config.base.precision if config.base.precision in ("int8", "nf4") else ""
    return {
        "raw weights": weights("fp16"),
        "converted": weights(config.base.dtype),
        **({f"{quantized} copy": weights(quantized)} if quantized else {}),
        "checkpoints": checkpoint * (config.train.keep_checkpoints + 1) + SPARE_BYTES,
        "merged": weights("fp16"),
    }


def download_bytes(config: Config, plan: MemoryPlan) -> int:
    """Bytes of the raw weights, 0 if they are there already."""
    if config.base.source and holds_something(Path(config.base.source)):
        return 0
    return disk_bytes(config, plan.shape, plan.step)["raw weights"]
