"""Does the run fit, how many layers recompute, how many steps, hours and what money? By arithmetic, without a GPU.

Memory is the model of recipe/planning/memory.py, which tests compare with real steps; hours are FLOP over the matmul
rate that others measured on a P100. Neither has been measured on a P100 by this project yet.
"""

import argparse
import dataclasses
import re
import sys
from typing import Any

from recipe.core.cli import build_parser, entry, load_config
from recipe.core.errors import UnfitError, UsageError
from recipe.core.text import show
from recipe.planning import memory
from recipe.planning.cards import CARDS
from recipe.planning.hardware import CONTEXT_MIB, MARGIN_MIB, MIB
from recipe.planning.sizing import KNOWN
from recipe.planning.text import estimated, text, verdict
from recipe.planning.whole import Plan
from recipe.planning.whole import make_plan as run


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
            "gpu": plan.card.mib,
            "left": plan.left,
            "margin": MARGIN_MIB,
            "fits": planned.fits,
            "by_gpu": [
                {"layers": [layers[0], layers[-1]], "total": round(estimate.peak / MIB) + CONTEXT_MIB}
                for layers, estimate in planned.by_gpu
            ],
            "layers": shape.num_hidden_layers,
            "recomputed": planned.recomputed,
            "fewest_recomputed": planned.fewest,
            "linear_parameters": shape.linear_parameters(),
            "adapter_parameters": memory.adapter_parameters(shape, step),
        },
        "advice": plan.advice,
        "time": {
            "flop_per_token": time.flop_per_token,
            "tflops": plan.card.tflops,
            "tokens_per_second": [round(speed, 1) for speed in time.tokens_per_second],
            "fp16_accumulation_tokens_per_second": _round(time.fp16_tokens_per_second),
            "hours_per_million_tokens": [round(hours, 2) for hours in time.hours(1e6)],
            "max_length": time.max_length,
            "epochs": time.epochs,
            "corpus": time.corpus.source,
            "tokens": time.corpus.tokens,
            "samples": time.corpus.samples,
            "steps": time.steps,
            "hours": None if plan.hours is None else [round(hours, 1) for hours in plan.hours],
        },
        "card": {"name": plan.card.name, "rate": plan.card.source, "note": plan.card.note},
        "parallel": dataclasses.asdict(plan.parallel) if plan.parallel else None,
        "price": plan.price,
        "money": None if plan.money is None else [round(money, 2) for money in plan.money],
        "download": plan.download,
        "disk": plan.disk,
        "note": estimated(plan),
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def main(argv: list[str] | None = None) -> int:
    example = "python -m recipe.plan --config recipe/configs/vicuna-7b-p100.toml"
    parser = build_parser("plan", __doc__ or "", example)
    parser.add_argument("--shape", choices=sorted(KNOWN), help="a LLaMA of this size, whatever is at base.path")
    parser.add_argument("--tokens", type=positive, metavar="N", help="tokens of one epoch if no corpus is prepared")
    parser.add_argument("--gpu", choices=sorted(CARDS), default="p100", help="the kind of GPU (default p100)")
    parser.add_argument("--gpus", type=positive, metavar="N", default=1, help="GPUs that share each step's packs")
    parser.add_argument("--price", type=price, metavar="X", help="of a GPU for an hour, in any currency")
    args = parser.parse_args(argv)
    config = load_config(args)
    if config.train.gradient_accumulation_steps % args.gpus:
        raise UsageError(
            f"--gpus is {args.gpus}, expected a divisor of train.gradient_accumulation_steps = "
            f"{config.train.gradient_accumulation_steps}, the packs of a step that the GPUs share; use fewer"
        )
    if config.base.split > 1 and args.gpus > 1:
        raise UsageError(
            f"--gpus is {args.gpus} and base.split {config.base.split}, expected one of the two above 1: GPUs share "
            "either the packs of a step or the layers of the base"
        )
    plan = run(config, args.shape, args.tokens, CARDS[args.gpu], args.gpus, args.price)
    show(as_json(plan), text(plan), args.json)
    if not plan.memory.fits:
        raise UnfitError(verdict(plan))
    return 0


def positive(text: str) -> int:
    """An argparse type: a count of at least one."""
    if not (text.isdecimal() and text.isascii() and len(text) <= 18 and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text[:40]!r}")
    return int(text)


def price(text: str) -> float:
    """An argparse type: an amount of money above zero."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) or not float(text):
        raise argparse.ArgumentTypeError(f"expected an amount above 0, as 0.55, found {text[:40]!r}")
    return float(text)


if __name__ == "__main__":
    sys.exit(entry(main))
