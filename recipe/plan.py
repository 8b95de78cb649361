"""Does the run fit into 16 GB, how many layers recompute, how many steps and hours? By arithmetic: no GPU, no weights.

Memory is the model of recipe/planning/memory.py, which tests compare with real steps; hours are FLOP over the matmul
rate that others measured on a P100. Neither has been measured on a P100 by this project yet.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import UnfitError
from recipe.core.text import show, table
from recipe.planning import memory
from recipe.planning.advice import advise
from recipe.planning.hardware import CONTEXT_MIB, MARGIN_MIB, MIB, P100_FP16_TFLOPS, P100_MIB, P100_TFLOPS
from recipe.planning.sizing import KNOWN, MemoryPlan, plan_memory
from recipe.planning.throughput import TimePlan, estimate_time, read_corpus_size

ESTIMATED = "estimated by arithmetic, not yet measured on a P100"


@dataclass(frozen=True)
class Plan:
    """Memory and time of a run on a P100; `advice` is empty if it fits."""

    name: str
    memory: MemoryPlan
    time: TimePlan
    advice: str

    @property
    def peak(self) -> int:
        """MiB of the largest step."""
        return round(self.memory.estimate.peak / MIB)

    @property
    def total(self) -> int:
        """MiB of the largest step and the CUDA context."""
        return self.peak + CONTEXT_MIB

    @property
    def left(self) -> int:
        """MiB of the GPU that remain free."""
        return P100_MIB - self.total


def run(config: Config, size: str | None = None, tokens: int | None = None) -> Plan:
    """The plan of a run on a P100; `size` names a known shape, `tokens` replaces the count of a prepared corpus.

    Raises UsageError if neither base.path nor `size` tells the shape.
    """
    planned = plan_memory(config, size=size)
    time = estimate_time(config, planned, read_corpus_size(config, tokens))
    return Plan(config.name, planned, time, "" if planned.fits else advise(config, planned.shape))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: memory in MiB, time in tokens per second and hours."""
    planned, time = plan.memory, plan.time
    shape, step = planned.shape, planned.step
    return {
        "config": plan.name,
        "shape": dataclasses.asdict(shape) | {"from": planned.origin},
        "step": dataclasses.asdict(step),
        "memory": {
            **{name: round(size / MIB) for name, size in dataclasses.asdict(planned.estimate).items()},
            "context": CONTEXT_MIB,
            "peak": plan.peak,
            "total": plan.total,
            "gpu": P100_MIB,
            "left": plan.left,
            "margin": MARGIN_MIB,
            "fits": planned.fits,
            "layers": shape.num_hidden_layers,
            "recomputed": planned.recomputed,
            "fewest_recomputed": planned.fewest,
            "linear_parameters": shape.linear_parameters(),
            "adapter_parameters": memory.adapter_parameters(shape, step),
        },
        "advice": plan.advice,
        "time": {
            "flop_per_token": time.flop_per_token,
            "tflops": P100_TFLOPS,
            "tokens_per_second": [round(speed, 1) for speed in time.tokens_per_second],
            "fp16_accumulation_tokens_per_second": _round(time.fp16_tokens_per_second),
            "hours_per_million_tokens": [round(hours, 2) for hours in time.hours(1e6)],
            "max_length": time.max_length,
            "epochs": time.epochs,
            "corpus": time.corpus.source,
            "tokens": time.corpus.tokens,
            "samples": time.corpus.samples,
            "steps": time.steps,
            "hours": _run_hours(time),
        },
        "note": ESTIMATED,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _run_hours(time: TimePlan) -> list[float] | None:
    tokens = time.corpus.tokens
    return None if tokens is None else [round(hours, 1) for hours in time.hours(tokens * time.epochs)]


def verdict(plan: Plan) -> str:
    """One sentence."""
    if plan.memory.fits:
        return f"fits: {plan.left:,} MiB of the GPU's {P100_MIB:,} remain free"
    most = P100_MIB - MARGIN_MIB
    return (
        f"{plan.name} does not fit: found {plan.total:,} MiB, expected at most {most:,} of the GPU's {P100_MIB:,}, "
        f"{plan.total - most:,} too many; {plan.advice}"
    )


def text(plan: Plan) -> str:
    """The plan for a person, with the arithmetic shown."""
    shape = plan.memory.shape
    head = (
        f"{plan.name}: {shape.num_hidden_layers} layers of {shape.hidden_size}/{shape.intermediate_size}, "
        f"vocabulary {shape.vocab_size:,} ({plan.memory.origin})"
    )
    return "\n".join([head, "", *memory_lines(plan), "", *time_lines(plan), "", verdict(plan), ESTIMATED])


def memory_lines(plan: Plan) -> list[str]:
    """The memory table with the origin of each number, and the number of recomputed layers."""
    planned = plan.memory
    shape, step, estimate = planned.shape, planned.step, planned.estimate
    layers, recomputed = shape.num_hidden_layers, planned.recomputed
    whole, layer_input = memory.layer_kept(shape, step), step.tokens * shape.hidden_size * step.width
    trained = memory.adapter_parameters(shape, step)
    linear = f"{shape.linear_parameters() / 1e9:.2f} billion in linear layers in {step.precision}"
    kept = f"{layers - recomputed} layers keep {_mib(whole)} each"
    kept += f", {recomputed} recomputed ones {_mib(layer_input)} each" if recomputed else ""
    rows = [
        ["weights", _mib(estimate.weights), f"{linear}; embeddings, norms and lm_head in fp16"],
        ["adapters", _mib(estimate.adapters), f"{trained:,} parameters in fp32, and their gradients"],
        ["optimizer", _mib(estimate.optimizer), f"two moments per parameter by {step.optimizer}"],
        ["activations", _mib(estimate.kept), f"of {step.tokens:,} tokens: {kept}"],
        [
            "transient",
            _mib(max(estimate.loss, estimate.layer)),
            f"the larger of the loss, {_mib(estimate.loss)}, and one layer, {_mib(estimate.layer)}",
        ],
        ["CUDA context", f"{CONTEXT_MIB:,}", "assumed"],
        ["total", f"{plan.total:,}", ""],
        ["free", f"{plan.left:,}", f"of {P100_MIB:,}; at least {MARGIN_MIB:,} should stay free (assumed)"],
    ]
    lines = table([["memory", "MiB", "from"], *rows], right=(1,)).splitlines()
    return [*lines, f"{recomputed} of {layers} layers recompute their activations; {_explain_fewest(planned)}"]


def _explain_fewest(planned: MemoryPlan) -> str:
    if planned.fewest is None:
        return "even recomputing all does not fit"
    return "the fewest that fit" if planned.fewest == planned.recomputed else f"{planned.fewest} would suffice"


def _mib(size: int) -> str:
    return f"{round(size / MIB):,}"


def time_lines(plan: Plan) -> list[str]:
    """FLOP per token by term with the origin of each, then steps and hours."""
    time, shape = plan.time, plan.memory.shape
    how = {
        "forward": f"2 x {shape.linear_parameters() / 1e9:.2f} billion weights",
        "recompute": f"the same for {plan.memory.recomputed} of {shape.num_hidden_layers} layers",
        "backward": "as forward: with respect to the inputs only, frozen weights get no gradient",
        "attention": f"over {time.max_length:,} tokens, once per forward pass and twice per backward pass",
        "lm_head": f"2 x 2 x {shape.vocab_size:,} x {shape.hidden_size:,} at the trained tokens",
    }
    rows = [[name, f"{count / 1e9:.2f}", how[name]] for name, count in time.flop_per_token.items()]
    rows.append(["total", f"{sum(time.flop_per_token.values()) / 1e9:.2f}", ""])
    return [*table([["time", "GFLOP per token", "from"], *rows], right=(1,)).splitlines(), *_speed_lines(time)]


def _speed_lines(time: TimePlan) -> Iterator[str]:
    (slow, fast), (low, high) = time.tokens_per_second, P100_TFLOPS
    yield f"at {low} to {high} TFLOP/s of a P100's fp16 matmul: at most {slow:.0f} to {fast:.0f} tokens/s"
    yield "a common system prompt is counted for every conversation here; training computes it once per pack"
    if speed := time.fp16_tokens_per_second:
        yield (
            f"with fp16 accumulation at the data sheet's {P100_FP16_TFLOPS} TFLOP/s: at most {speed:.0f} tokens/s, "
            "not yet measured"
        )
    if time.corpus.tokens is None:
        yield f"tokens unknown ({time.corpus.source}): a million take at least {_span(time.hours(1e6), 2)} hours"
        return
    epochs = f"{time.epochs:g} epoch{'s' * (time.epochs != 1)}"
    work = f"{time.corpus.tokens:,} tokens ({time.corpus.source}) x {epochs}"
    yield f"{work}: {time.steps:,} optimizer steps if every pack were full"
    yield f"{work}: at least {_span(time.hours(time.corpus.tokens * time.epochs), 1)} hours if all time were matmul"


def _span(hours: list[float], digits: int) -> str:
    return f"{round(min(hours), digits)} to {round(max(hours), digits)}"


def main(argv: list[str] | None = None) -> int:
    example = "python -m recipe.plan --config recipe/configs/vicuna-7b-p100.toml"
    parser = build_parser("plan", __doc__ or "", example)
    parser.add_argument("--shape", choices=sorted(KNOWN), help="a LLaMA of this size, whatever is at base.path")
    parser.add_argument("--tokens", type=positive, metavar="N", help="tokens of one epoch if no corpus is prepared")
    args = parser.parse_args(argv)
    plan = run(load_config(args), args.shape, args.tokens)
    show(as_json(plan), text(plan), args.json)
    if not plan.memory.fits:
        raise UnfitError(verdict(plan))
    return 0


def positive(text: str) -> int:
    """An argparse type: a count of at least one."""
    if not (text.isdecimal() and text.isascii() and len(text) <= 18 and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text[:40]!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(entry(main))
