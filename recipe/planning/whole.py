"""A whole plan: memory, time, several GPUs, money, downloads and disk of one run on one kind of GPU."""

from dataclasses import dataclass

from recipe.core.config import Config
from recipe.planning.advice import advise
from recipe.planning.cards import P100, Card
from recipe.planning.costs import Parallel, disk_bytes, download_bytes, plan_parallel
from recipe.planning.hardware import CONTEXT_MIB, MIB
from recipe.planning.sizing import MemoryPlan, plan_memory
from recipe.planning.throughput import TimePlan, estimate_time, read_corpus_size


@dataclass(frozen=True)
class Plan:
    """Memory and time of a run; `advice` is empty if it fits."""

    name: str
    card: Card
    memory: MemoryPlan
    time: TimePlan
    advice: str
    parallel: Parallel | None  # None: one GPU
    price: float | None  # of a GPU for an hour, in any currency
    disk: dict[str, int]
    download: int

    @property
    def peak(self) -> int:
        """MiB of the largest step."""
        return round(self.memory.estimate.peak / MIB)

    @property
    def total(self) -> int:
        """MiB of the largest step and the CUDA context."""
        return self.peak + CONTEXT_MIB

    @property
    def gpus(self) -> int:
        """GPUs that the run uses."""
        return self.parallel.gpus if self.parallel else self.memory.step.split

    @property
    def left(self) -> int:
        """MiB of the GPU that remain free."""
        return self.card.mib - self.total

    @property
    def hours(self) -> list[float] | None:
        """At the lower and the higher rate, on all GPUs; None: tokens unknown."""
        if self.parallel:
            return self.parallel.hours
        tokens = self.time.corpus.tokens
        return None if tokens is None else self.time.hours(tokens * self.time.epochs)

    @property
    def money(self) -> list[float] | None:
        """Hours on all GPUs at the price; None if either is unknown."""
        if self.hours is None or self.price is None:
            return None
        return [hours * self.price * self.gpus for hours in self.hours]


def make_plan(
    config: Config,
    size: str | None = None,
    tokens: int | None = None,
    card: Card = P100,
    gpus: int = 1,
    price: float | None = None,
) -> Plan:
    """The plan of a run; `size` names a known shape, `tokens` replaces the count of a prepared corpus.

    Raises UsageError if neither base.path nor `size` tells the shape.
    """
    planned = plan_memory(config, card.budget, size=size, half=card.half)
    time = estimate_time(config, planned, read_corpus_size(config, tokens), card)
    return Plan(
        config.name,
        card,
        planned,
        time,
        "" if planned.fits else advise(config, planned.shape, card),
        plan_parallel(config, planned, time, gpus) if gpus > 1 else None,
        price,
        disk_bytes(config, planned.shape, planned.step),
        download_bytes(config, planned),
    )
