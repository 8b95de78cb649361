"""Where the time of an optimizer step goes, beside what its matmuls need at the machine's rate; prints one JSON object.

    python tests/bench/profile_step.py --corpus .cache/bench/corpus-512 --length 512

This recipe's step of train.py, on an fp32 base, under torch's profiler. The events need memory, and new pages
are slow, so a first pass under it does not count.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import train

# Which part of a step the work inside a function of this recipe, or of one of torch's own operations, belongs to.
FUNCTIONS = {
    "_TiledCausal": "attention",
    "aten::scaled_dot_product_attention": "attention",
    "_ChunkedNll": "lm_head and loss",
    "_SwiGlu": "the MLPs' silu and products",
    "_RmsNorm": "norms",
    "_Rotation": "rotary embedding",
    "_AddAdapters": "adapters",
}
OPERATIONS = {"aten::mm": "frozen layers", "aten::bmm": "attention", "aten::_softmax_backward_data": "attention"}
REST = "the rest: other operations of torch"
NEEDS = {"frozen layers": "layers", "attention": "attention", "lm_head and loss": "lm_head"}  # keys of train.flop


def part(event: Any) -> str:
    """The part that an event of the profiler belongs to."""
    outer: Any = event
    while outer is not None:
        if found := FUNCTIONS.get(outer.name.removesuffix("Backward")):
            return found
        outer = outer.cpu_parent
    return OPERATIONS.get(event.name, REST)


def seconds_by_part(events: Iterable[Any]) -> dict[str, float]:
    out: dict[str, float] = {}
    for event in events:
        name = part(event)
        out[name] = out.get(name, 0) + event.self_cpu_time_total / 1e6
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base", type=Path, default=train.ROOT / "weights" / "smollm2-135m-instruct", help="a converted base"
    )
    parser.add_argument("--corpus", type=Path, required=True, help="a prepared corpus")
    parser.add_argument("--length", type=int, default=512, help="longest conversation, in tokens")
    parser.add_argument("--conversations", type=int, default=16, help="conversations of the step")
    args = parser.parse_args()
    import torch
    from torch.profiler import ProfilerActivity, profile

    rows = train.sample(args.base, args.corpus, args.length, args.conversations)
    with tempfile.TemporaryDirectory() as folder:
        loop = train.ours("ours", args.base, rows, args.length, Path(folder))
        loop.train()  # a warm-up
        rate, start = train.matmul_rate(torch), time.perf_counter()
        loop.train()
        plain = time.perf_counter() - start
        for _ in range(2):
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                start = time.perf_counter()
                loop.train()
                profiled = time.perf_counter() - start
        rate = max(rate, train.matmul_rate(torch))
    taken = seconds_by_part(seen.events())
    taken["Python and the profiler"] = profiled - sum(taken.values())
    work = train.flop("ours", args.base, rows, args.length)
    parts = {
        name: {"seconds": round(seconds, 2)}
        | ({"needed": round(work[NEEDS[name]] / rate / 1e9, 2)} if name in NEEDS else {})
        for name, seconds in sorted(taken.items(), key=lambda one: -one[1])
    }
    head = {"length": args.length, "gflops": round(rate), "seconds": round(plain, 2), "profiled": round(profiled, 2)}
    print(json.dumps(head | {"parts": parts}))
    return 0


if __name__ == "__main__":
    from recipe.core.cli import entry

    sys.exit(entry(main))
