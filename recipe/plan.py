"""Before paying for a card: does the run fit into 16 GB, how many layers must recompute, how many steps and hours?

Arithmetic alone, no GPU and no weights. Memory is the model of recipe/pascal/memory.py, which tests hold against real
steps; hours are FLOPs over the matmul rate that others measured on a P100. Neither is yet measured on a P100 here.
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe import console, provenance
from recipe.config import Config
from recipe.errors import RecipeError, UnfitError
from recipe.sizing import (
    CARD_MIB,
    CONTEXT_MIB,
    KNOWN,
    MARGIN_MIB,
    MIB,
    check_targets,
    read_shape,
    recomputed_layers,
    step_of,
)

if TYPE_CHECKING:
    from recipe.pascal.memory import Estimate, Shape, Step

TFLOPS = (7.9, 8.4)  # a large fp16 torch matmul on a P100-PCIE, as two public benchmarks measured it
FP16_SUMS_TFLOPS = 18.7  # the data sheet's fp16 rate, which only matmuls that add in fp16 reach
ESTIMATED = "estimated by arithmetic, not yet measured on a P100"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What the time depends on. None where nobody knows yet."""

    tokens: int | None
    samples: int | None
    trained_share: float = 1.0
    source: str = ""


def run(config: Config, size: str | None = None, tokens: int | None = None) -> dict[str, Any]:
    """The plan of a run as plain values; `size` names a known shape, `tokens` stands in for a prepared corpus.

    Raises UsageError where neither base.path nor a size tells the shape.
    """
    from recipe.pascal import memory

    shape, origin = read_shape(config, size)
    check_targets(config, shape)
    step = step_of(config)
    recomputed = recomputed_layers(config, shape)
    estimate = memory.estimate(shape, step, recomputed)
    budget = (CARD_MIB - CONTEXT_MIB - MARGIN_MIB) * MIB
    corpus = read_corpus(config, tokens)
    return {
        "config": config.name,
        "shape": dataclasses.asdict(shape) | {"from": origin},
        "memory": memory_of(shape, estimate, recomputed, memory.fewest_recomputed(shape, step, budget)),
        "advice": advice(config, shape, budget) if estimate.peak > budget else "",
        "time": time_of(config, shape, step, recomputed, corpus),
        "note": ESTIMATED,
    }


def memory_of(shape: "Shape", estimate: "Estimate", recomputed: int, fewest: int | None) -> dict[str, Any]:
    """In MiB, as the table shows it."""
    parts = {name: round(size / MIB) for name, size in dataclasses.asdict(estimate).items()}
    peak = round(estimate.peak / MIB)
    return {
        **parts,
        "context": CONTEXT_MIB,
        "peak": peak,
        "total": peak + CONTEXT_MIB,
        "card": CARD_MIB,
        "left": CARD_MIB - CONTEXT_MIB - peak,
        "margin": MARGIN_MIB,
        "fits": peak <= CARD_MIB - CONTEXT_MIB - MARGIN_MIB,
        "layers": shape.num_hidden_layers,
        "recomputed": recomputed,
        "fewest_recomputed": fewest,
    }


def advice(config: Config, shape: "Shape", budget: int) -> str:
    """What to change so that the run fits: one change if one is enough, else all that save memory."""
    from recipe.pascal.memory import estimate

    changes: list[dict[str, Any]] = [
        {"train.recompute": -1},
        {"base.precision": "int8"},
        {"base.precision": "nf4"},
        {"corpus.max_length": 1024, "train.micro_batch_tokens": 1024},
        {"corpus.max_length": 512, "train.micro_batch_tokens": 512},
        {"train.optimizer": "adamw8bit"},
    ]
    together = {key: value for change in changes for key, value in change.items()}

    def fits(change: dict[str, Any]) -> bool:
        changed = changed_config(config, change)
        return estimate(shape, step_of(changed), recomputed_layers(changed, shape)).peak <= budget

    def said(change: dict[str, Any]) -> str:
        return ", ".join(f"{key} = {json.dumps(value)}" for key, value in change.items())

    enough = [said(change) for change in changes if fits(change)]
    if enough:
        return f"set {' or '.join(enough)}"
    if fits(together):
        return f"set {said(together)}"
    return "no setting of this recipe makes it fit: take a smaller base"


def changed_config(config: Config, change: dict[str, Any]) -> Config:
    """`config` with some fields, by dotted key, set to other values; a length or a budget is never raised."""
    for dotted, value in change.items():
        section, _, key = dotted.partition(".")
        part = getattr(config, section)
        if dotted in ("corpus.max_length", "train.micro_batch_tokens"):
            value = min(value, getattr(part, key))
        config = dataclasses.replace(config, **{section: dataclasses.replace(part, **{key: value})})
    return config


def read_corpus(config: Config, tokens: int | None) -> Corpus:
    """From the prepared corpus' manifest, or a number of tokens that the caller knows."""
    path = Path(config.corpus.path)
    if tokens is not None:
        return Corpus(tokens, None, source="--tokens")
    if not config.corpus.path or not (path / provenance.MANIFEST).is_file():
        return Corpus(None, None, source=f"{path} is not prepared yet" if config.corpus.path else "no corpus.path")
    results = provenance.read_manifest(path).get("results", {})
    try:
        train, trained = results["tokens"]["train"], results["trained_tokens"]["train"]
        return Corpus(train, results["samples"]["train"], trained / train, str(path))
    except (KeyError, TypeError, ZeroDivisionError):
        raise RecipeError(f"{path}/{provenance.MANIFEST} counts no tokens; prepare the corpus again") from None


def time_of(config: Config, shape: "Shape", step: "Step", recomputed: int, corpus: Corpus) -> dict[str, Any]:
    """FLOP per token, tokens per second at the matmul rate, steps and hours; None where the corpus is not known."""
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    weights = 2 * shape.linear_parameters()
    # query x key and scores x value, of the longest conversation; the causal kernel skips the future, half of it
    scores = 2 * layers * config.corpus.max_length * hidden
    head = 2 * shape.vocab_size * hidden * corpus.trained_share
    flop = {
        "forward": weights,
        "recompute": weights * recomputed // layers,
        "backward": weights,  # towards the input alone: frozen weights get no gradient
        "attention": scores * (3 * layers + recomputed) // layers,  # its backward has four products instead of two
        "lm_head": int(2 * head),
    }
    speed = [rate * 1e12 / sum(flop.values()) for rate in TFLOPS]
    epochs, per_step = config.train.epochs, config.train.micro_batch_tokens * config.train.accumulation
    out: dict[str, Any] = {"flop_per_token": flop, "tflops": TFLOPS, "tokens_per_second": [round(s, 1) for s in speed]}
    out |= {"hours_per_million_tokens": [round(1e6 / s / 3600, 2) for s in speed], "corpus": corpus.source}
    out |= {"epochs": epochs, "tokens": corpus.tokens, "samples": corpus.samples, "steps": None, "hours": None}
    if config.train.accumulate == "fp16":
        frozen = flop["forward"] + flop["recompute"] + flop["backward"]
        rest = sum(flop.values()) - frozen
        out["fp16_sums_tokens_per_second"] = round(1e12 / (frozen / FP16_SUMS_TFLOPS + rest / max(TFLOPS)), 1)
    if corpus.tokens is not None:
        out["steps"] = max(1, math.ceil(round(corpus.tokens * epochs / per_step, 6)))  # were every pack full
        out["hours"] = [round(corpus.tokens * epochs / s / 3600, 1) for s in speed]
    return out


def verdict(plan: dict[str, Any]) -> str:
    """One sentence."""
    memory = plan["memory"]
    if memory["fits"]:
        return f"fits: {memory['left']:,} MiB of the card's {memory['card']:,} are left"
    over = memory["total"] + memory["margin"] - memory["card"]
    return (
        f"{plan['config']} does not fit: found {memory['total']:,} MiB, expected at most "
        f"{memory['card'] - memory['margin']:,} of the card's {memory['card']:,}, {over:,} too many; {plan['advice']}"
    )


def text(plan: dict[str, Any]) -> str:
    """The plan for a person, the arithmetic shown."""
    shape = plan["shape"]
    head = (
        f"{plan['config']}: {shape['num_hidden_layers']} layers of {shape['hidden_size']}/{shape['intermediate_size']},"
        f" vocabulary {shape['vocab_size']:,} ({shape['from']})"
    )
    return "\n".join([head, "", *memory_lines(plan["memory"]), "", *time_lines(plan), "", verdict(plan), plan["note"]])


def memory_lines(memory: dict[str, Any]) -> list[str]:
    """The table, and what recomputing has to do with it."""
    bigger = "the work in one layer" if memory["layer"] >= memory["loss"] else "the loss"
    rows = [
        ("weights", memory["weights"]),
        ("adapters, their gradients", memory["adapters"]),
        ("optimizer", memory["optimizer"]),
        (f"activations kept, {memory['recomputed']} of {memory['layers']} layers recomputed", memory["kept"]),
        (f"{bigger} (loss {memory['loss']:,}, layer {memory['layer']:,})", max(memory["loss"], memory["layer"])),
        ("CUDA context (assumed)", memory["context"]),
        ("sum", memory["total"]),
        (f"left of {memory['card']:,} ({memory['margin']:,} wanted as margin)", memory["left"]),
    ]
    fewest, layers = memory["fewest_recomputed"], memory["layers"]
    enough = "not even all would be enough" if fewest is None else f"{fewest} would be enough"
    table = console.table([["memory", "MiB"], *([name, f"{size:>7,}"] for name, size in rows)])
    return [*table.splitlines(), f"{memory['recomputed']} of {layers} layers recompute, {enough}"]


def time_lines(plan: dict[str, Any]) -> list[str]:
    """FLOP per token line by line, then steps and hours."""
    time = plan["time"]
    flop, (slow, fast), tflops = time["flop_per_token"], time["tokens_per_second"], time["tflops"]
    lines = [["time", "GFLOP per token"], *([name, f"{count / 1e9:15.2f}"] for name, count in flop.items())]
    lines.append(["sum", f"{sum(flop.values()) / 1e9:15.2f}"])
    out = console.table(lines).splitlines()
    out.append(f"at {tflops[0]} to {tflops[1]} TFLOP/s of a P100's fp16 matmul: at most {slow} to {fast} tokens/s")
    if speed := time.get("fp16_sums_tokens_per_second"):
        out.append(f"with fp16 sums at the data sheet's {FP16_SUMS_TFLOPS} TFLOP/s: at most {speed}, not yet measured")
    if time["hours"] is None:
        out.append(f"tokens unknown ({time['corpus']}): a million take {_span(time['hours_per_million_tokens'])} hours")
        return out
    work = f"{time['tokens']:,} tokens ({time['corpus']}) x {time['epochs']:g} epochs"
    out.append(f"{work}: {time['steps']:,} optimizer steps if every pack were full")
    out.append(f"{work}: {_span(time['hours'])} hours if matmuls were all")
    return out


def _span(hours: list[float]) -> str:
    return f"{min(hours)} to {max(hours)}"


def main(argv: list[str] | None = None) -> int:
    parser = console.parser("plan", __doc__ or "", "python -m recipe.plan --config recipe/configs/vicuna-7b-p100.toml")
    parser.add_argument("--shape", choices=sorted(KNOWN), help="a LLaMA of this size, whatever lies at base.path")
    parser.add_argument("--tokens", type=positive, metavar="N", help="tokens of one epoch, where no corpus is prepared")
    args = parser.parse_args(argv)
    plan = run(console.load_config(args), args.shape, args.tokens)
    console.show(plan, text(plan), args.json)
    if not plan["memory"]["fits"]:
        raise UnfitError(verdict(plan))
    return 0


def positive(text: str) -> int:
    """An argparse type: a count of at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(console.entry(main))
