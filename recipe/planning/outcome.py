"""The plan of a run against what happened."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from recipe.core.config import Config
from recipe.planning.hardware import MIB
from recipe.planning.sizing import plan_memory
from recipe.planning.throughput import TimePlan, estimate_time, read_corpus_size

Rows = list[list[str]]


def compare(config: Config, metrics: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Rows:
    """A row for steps, packs, speed, hours and memory: the plan for a P100, what happened; the heading first.

    `metrics` are the rows of metrics.jsonl so far, `results` those of the manifest, empty before training ends. Raises
    RecipeError or UsageError if there can be no plan: the base or the corpus is not there.
    """
    memory = plan_memory(config)
    time = estimate_time(config, memory, read_corpus_size(config))
    speed, used, step, epoch = (_newest(metrics, key) for key in ("tokens_per_second", "memory_mb", "step", "epoch"))
    steps = results.get("steps", step)
    tokens = (time.corpus.tokens or 0) * (epoch or 0.0)
    hours = tokens / speed / 3600 if speed and tokens else None
    return [
        ["", "plan for a P100", "this run"],
        ["optimizer steps", _planned_steps(time), _show(steps, "so far" if not results else "")],
        ["share of the packs that is filled", "100.0%", f"{results['fill']:.1%}" if "fill" in results else "-"],
        [
            "tokens per second",
            f"at most {time.tokens_per_second[0]:,.0f} to {time.tokens_per_second[1]:,.0f}",
            _show(speed),
        ],
        ["hours", _planned_hours(time), f"about {hours:.1f}" if hours else "-"],
        ["peak memory, MB", f"{math.ceil(memory.estimate.peak / MIB):,}", _show(used)],
    ]


def _newest(metrics: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in metrics if isinstance(row.get(key), int | float)]
    return values[-1] if values else None


def _planned_steps(time: TimePlan) -> str:
    return "unknown" if time.steps is None else f"{time.steps:,} if every pack were full"


def _planned_hours(time: TimePlan) -> str:
    if time.corpus.tokens is None:
        return "unknown"
    fast, slow = sorted(time.hours(time.corpus.tokens * time.epochs))
    digits = 1 if slow >= 1 else 3
    return f"at least {fast:.{digits}f} to {slow:.{digits}f}"


def _show(value: float | None, note: str = "") -> str:
    return "-" if value is None else f"{value:,.0f} {note}".strip()
