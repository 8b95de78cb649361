"""Before paying for a card: does the run fit into 16 GB, how many layers must recompute, how many steps and hours?

Arithmetic alone, no GPU and no weights. Memory is the model of recipe/pascal/memory.py, which tests hold against real
steps; hours are FLOPs over the matmul rate that others measured on a P100. Neither is yet measured on a P100 here.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UnfitError
from recipe.core.files import MANIFEST
from recipe.core.manifest import read_manifest
from recipe.core.text import show, table
from recipe.planning.advice import advice
from recipe.planning.sizing import (
    CARD_MIB,
    CONTEXT_MIB,
    KNOWN,
    MARGIN_MIB,
    MIB,
    P100_BUDGET,
    check_numbers,
    check_targets,
    read_shape,
    recomputed_layers,
    step_of,
)

if TYPE_CHECKING:
    from recipe.planning.memory import Shape, Step

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
    check_numbers(config)
    shape, origin = read_shape(config, size)
    check_targets(config, shape)
    step = step_of(config)
    recomputed = recomputed_layers(config, shape, step, P100_BUDGET)
    memory = memory_of(shape, step, recomputed)
    return {
        "config": config.name,
        "shape": dataclasses.asdict(shape) | {"from": origin},
        "step": dataclasses.asdict(step),
        "memory": memory,
        "advice": "" if memory["fits"] else advice(config, shape),
        "time": time_of(config, shape, step, recomputed, read_corpus(config, tokens)),
        "note": ESTIMATED,
    }


def memory_of(shape: "Shape", step: "Step", recomputed: int) -> dict[str, Any]:
    """In MiB, as the table shows it, and the counts it comes from."""
    from recipe.planning import memory

    estimate = memory.estimate(shape, step, recomputed)
    peak = round(estimate.peak / MIB)
    return {
        **{name: round(size / MIB) for name, size in dataclasses.asdict(estimate).items()},
        "context": CONTEXT_MIB,
        "peak": peak,
        "total": peak + CONTEXT_MIB,
        "card": CARD_MIB,
        "left": CARD_MIB - CONTEXT_MIB - peak,
        "margin": MARGIN_MIB,
        "fits": peak <= CARD_MIB - CONTEXT_MIB - MARGIN_MIB,
        "layers": shape.num_hidden_layers,
        "recomputed": recomputed,
        "fewest_recomputed": memory.fewest_recomputed(shape, step, P100_BUDGET),
        "linear_parameters": shape.linear_parameters(),
        "adapter_parameters": memory.adapter_parameters(shape, step),
        "layer_whole": round(memory.layer_kept(shape, step) / MIB),
        "layer_input": round(step.tokens * shape.hidden_size * step.width / MIB),
    }


def read_corpus(config: Config, tokens: int | None) -> Corpus:
    """From the prepared corpus' manifest, or a number of tokens that the caller knows."""
    path = Path(config.corpus.path)
    if tokens is not None:
        return Corpus(tokens, None, source="--tokens")
    if not config.corpus.path or not (path / MANIFEST).is_file():
        return Corpus(None, None, source=f"{path} is not prepared yet" if config.corpus.path else "no corpus.path")
    results = read_manifest(path).get("results", {})
    try:
        train, trained = results["tokens"]["train"], results["trained_tokens"]["train"]
        return Corpus(train, results["samples"]["train"], trained / train, str(path))
    except (KeyError, TypeError, ZeroDivisionError):
        raise RecipeError(f"{path}/{MANIFEST} counts no tokens; prepare the corpus again") from None


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
    epochs, per_step = config.train.epochs, config.train.micro_batch_tokens * config.train.gradient_accumulation_steps
    out: dict[str, Any] = {"flop_per_token": flop, "tflops": TFLOPS, "tokens_per_second": [round(s, 1) for s in speed]}
    out |= {"hours_per_million_tokens": [round(1e6 / s / 3600, 2) for s in speed], "corpus": corpus.source}
    out |= {
        "max_length": config.corpus.max_length,
        "epochs": epochs,
        "tokens": corpus.tokens,
        "samples": corpus.samples,
        "steps": None,
        "hours": None,
    }
    if config.train.matmul_accumulation == "fp16":
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
    return "\n".join([head, "", *memory_lines(plan), "", *time_lines(plan), "", verdict(plan), plan["note"]])


def memory_lines(plan: dict[str, Any]) -> list[str]:
    """The table, with where each number comes from, and what recomputing has to do with it."""
    memory, step = plan["memory"], plan["step"]
    layers, recomputed, trained = memory["layers"], memory["recomputed"], memory["adapter_parameters"]
    linear = f"{memory['linear_parameters'] / 1e9:.2f} billion in linear layers in {step['precision']}"
    kept = f"{recomputed} recomputed layers keep {memory['layer_input']:,} each, {layers - recomputed} others"
    rows = [
        ("weights", memory["weights"], f"{linear}; embeddings, norms and lm_head in fp16"),
        ("adapters", memory["adapters"], f"{trained:,} numbers in fp32, as many gradients, copies in fp16"),
        ("optimizer", memory["optimizer"], f"two moments of each by {step['optimizer']}"),
        ("activations", memory["kept"], f"of {step['length']:,} tokens: {kept} {memory['layer_whole']:,} each"),
        (
            "work",
            max(memory["loss"], memory["layer"]),
            f"the larger of the loss, {memory['loss']:,}, and the work in one layer, {memory['layer']:,}",
        ),
        ("CUDA context", memory["context"], "assumed"),
        ("sum", memory["total"], ""),
        ("left", memory["left"], f"of {memory['card']:,}; {memory['margin']:,} are wanted as margin (assumed)"),
    ]
    fewest = memory["fewest_recomputed"]
    enough = "not even all would be enough" if fewest is None else f"{fewest} would be enough"
    if fewest == recomputed:
        enough = "the fewest with which it fits"
    text = table([["memory", "    MiB", "from"], *([name, f"{size:>7,}", how] for name, size, how in rows)])
    return [*text.splitlines(), f"{recomputed} of {layers} layers recompute, {enough}"]


def time_lines(plan: dict[str, Any]) -> list[str]:
    """FLOP per token line by line, with where each comes from, then steps and hours."""
    time, memory, shape = plan["time"], plan["memory"], plan["shape"]
    flop, (slow, fast), tflops = time["flop_per_token"], time["tokens_per_second"], time["tflops"]
    how = {
        "forward": f"2 x {memory['linear_parameters'] / 1e9:.2f} billion weights",
        "recompute": f"the same for {memory['recomputed']} of {memory['layers']} layers",
        "backward": "as forward: towards the inputs alone, frozen weights get no gradient",
        "attention": f"among {time['max_length']:,} tokens, in the forward passes and twice in the backward one",
        "lm_head": f"2 x 2 x {shape['vocab_size']:,} x {shape['hidden_size']:,} at the trained tokens",
    }
    rows = [[name, f"{count / 1e9:15.2f}", how[name]] for name, count in flop.items()]
    rows.append(["sum", f"{sum(flop.values()) / 1e9:15.2f}", ""])
    out = table([["time", "GFLOP per token", "from"], *rows]).splitlines()
    out.append(
        f"at {tflops[0]} to {tflops[1]} TFLOP/s of a P100's fp16 matmul: at most {slow:.0f} to {fast:.0f} tokens/s"
    )
    out.append("a system prompt that all begin with counts here for each conversation; a pack computes it once")
    if speed := time.get("fp16_sums_tokens_per_second"):
        out.append(
            f"with fp16 sums at the data sheet's {FP16_SUMS_TFLOPS} TFLOP/s: at most {speed:.0f}, not yet measured"
        )
    if time["hours"] is None:
        hours = _span(time["hours_per_million_tokens"])
        out.append(f"tokens unknown ({time['corpus']}): a million take at least {hours} hours")
        return out
    work = f"{time['tokens']:,} tokens ({time['corpus']}) x {time['epochs']:g} epoch{'s' * (time['epochs'] != 1)}"
    out.append(f"{work}: {time['steps']:,} optimizer steps if every pack were full")
    out.append(f"{work}: at least {_span(time['hours'])} hours, were all time matmuls")
    return out


def _span(hours: list[float]) -> str:
    return f"{min(hours)} to {max(hours)}"


def main(argv: list[str] | None = None) -> int:
    parser = build_parser("plan", __doc__ or "", "python -m recipe.plan --config recipe/configs/vicuna-7b-p100.toml")
    parser.add_argument("--shape", choices=sorted(KNOWN), help="a LLaMA of this size, whatever lies at base.path")
    parser.add_argument("--tokens", type=positive, metavar="N", help="tokens of one epoch, where no corpus is prepared")
    args = parser.parse_args(argv)
    plan = run(load_config(args), args.shape, args.tokens)
    show(plan, text(plan), args.json)
    if not plan["memory"]["fits"]:
        raise UnfitError(verdict(plan))
    return 0


def positive(text: str) -> int:
    """An argparse type: a count of at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(entry(main))
