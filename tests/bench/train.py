"""Compare tokens per second of this recipe's training with other ways, on real conversations; prints one JSON object.

    python tests/bench/train.py --corpus .cache/bench/corpus-512 --length 512

All ways train the same LoRA on the same base, conversations and optimizer, in fp32 on a CPU (`int8`: on this recipe's
default base). `usual` is Hugging Face's Trainer as most recipes use it: padded to full length, the whole model
checkpointed, eager attention, all logits. `grouped` pads to the longest of a batch of similar lengths and keeps
the activations. `trl` is TRL's SFTTrainer with packing, in its own environment (--trl PYTHON): it cuts conversations,
has no document masking and trains on every token. `llamafactory` is LLaMA-Factory's supervised fine-tuning with neat
packing, in its own environment (--llamafactory PYTHON): whole conversations, which do not see each other, and the same
trained tokens as ours. `no-...` is this recipe without one of its optimizations, `larger-packs` with packs twice as
large.

Each way is a process that stays alive. The processes take turns at one optimizer step over all conversations, so that
other load on the machine affects all of them. The first turn is a warm-up. Ratios are medians over interleaved turns.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from others import LAYERS, LORA, OTHERS, SEPARATE, Rows, batch_of, llamafactory, neat_packs, trl, usual

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

LEVERS = (
    "no-packing",
    "no-shared-prompt",
    "no-blocks",
    "no-chunked-loss",
    "no-lean-layers",
    "no-kept-activations",
    "larger-packs",
)
WAYS = ("ours", "int8", *OTHERS, *LEVERS)


def sample(base: Path, corpus: Path, length: int, count: int) -> Rows:
    """Token ids and labels of `count` conversations, drawn with a fixed seed."""
    from recipe.model.load import load_tokenizer
    from recipe.training import dataset

    rows = dataset.encode_file(corpus / "train.jsonl", load_tokenizer(base), "vicuna_v1.1")
    rows = rows.filter(lambda row: len(row["input_ids"]) <= length).shuffle(seed=0).select(range(count))
    return [dict(row) for row in rows]


def ours(way: str, base: Path, rows: Rows, length: int, folder: Path) -> Any:
    """This recipe as `train` runs it, or without one optimization."""
    import torch
    from datasets import Dataset
    from torch.nn import functional as F

    from recipe.core.config import Lora, Train
    from recipe.core.run import Run
    from recipe.model import prepare
    from recipe.model.adapter import add_adapter
    from recipe.model.likelihood import IGNORED
    from recipe.model.load import load_base
    from recipe.pascal import attention
    from recipe.training import dataset
    from recipe.training import trainer as training
    from recipe.training.dataset import PackedDataset
    from recipe.training.trainer import build_trainer

    def all_logits(tuned: Any, batch: Any) -> tuple[torch.Tensor, int]:
        given = {name: batch[name] for name in ("input_ids", "position_ids", "lengths", "prefix")}
        logits = tuned(**given, attention_mask=torch.empty(1, 1, 1, 1), use_cache=False).logits[0, :-1]
        targets = batch["labels"][0, 1:]
        return F.cross_entropy(logits, targets, reduction="sum"), int((targets != IGNORED).sum())

    if way == "no-blocks":
        attention.TILED_FROM = sys.maxsize
    if way == "no-chunked-loss":
        training.trained_nll = all_logits
    if way == "no-lean-layers":
        prepare.fuse_layers = lambda *modules: None
    if way == "no-shared-prompt":
        dataset.common_prefix = lambda rows: 0
    table = Dataset.from_list(rows)
    loaded = load_base(base, "int8" if way == "int8" else "fp32", torch.device("cpu"))
    lora = Lora(rank=LORA["r"], alpha=LORA["lora_alpha"], dropout=0.0, target_modules=tuple(LORA["target_modules"]))
    budget, packs, _ = packed(way, table, length)
    settings = Train(
        micro_batch_tokens=budget, gradient_accumulation_steps=packs, eval_steps=0, save_steps=10**6, warmup_ratio=0.0
    )
    tuned = add_adapter(loaded, lora, seed=0)
    prepare.prepare_for_training(tuned, len(loaded.model.layers) if way == "no-kept-activations" else 0)
    data = PackedDataset(table, budget, settings.seed, packs_per_step=packs)
    return build_trainer(tuned, settings, Run(folder), data, PackedDataset(table, budget))


def packed(way: str, table: Any, length: int) -> tuple[int, int, int]:
    """(tokens of this recipe's packs, their number, tokens that all conversations begin with).

    What is longer than a pack is one of its own; short ones share larger ones, within the usual way's memory.
    """
    from recipe.training.dataset import PackedDataset

    budget = {"no-packing": 1, "larger-packs": 2 * max(length, 1024)}.get(way, max(length, 1024))
    data = PackedDataset(table, budget)
    return budget, len(data), data.prefix


def child(way: str, base: Path, rows: Rows, length: int) -> None:
    """Run one way: for each line on stdin one turn; prints its seconds, its loss and the matmul rate around it."""
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    make = {"usual": usual, "grouped": usual, "trl": trl, "llamafactory": llamafactory}.get(way, ours)
    with tempfile.TemporaryDirectory() as folder:
        loop = make(way, base, rows, length, Path(folder))
        print(json.dumps({"ready": way}), flush=True)
        for _ in sys.stdin:
            rate, start = matmul_rate(torch), time.perf_counter()
            loop.train()
            seconds = time.perf_counter() - start
            entries = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]
            out = {"seconds": seconds, "loss": entries[-1], "gflops": max(rate, matmul_rate(torch))}
            print(json.dumps(out | {"peak_mb": peak_mb()}), flush=True)


def peak_mb() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def matmul_rate(torch: Any) -> float:
    """GFLOP/s of the model's widest matmul, the best of 40: the upper limit for every way."""
    a, b = torch.randn(512, 576), torch.randn(576, 1536)
    best = float("inf")
    for _ in range(40):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 512 * 576 * 1536 / best / 1e9


def flop(way: str, base: Path, rows: Rows, length: int) -> dict[str, float]:
    """What a way computes in a turn: frozen layers and lm_head forward and backward, and attention's products of S x S.

    Ours is the least of all ways here: layers at real tokens, those of the system prompt once a pack, lm_head at
    trained ones, half of each S x S, as it is causal (the blocks on its diagonal, not counted, are one or two per cent
    more). Of `grouped` it is the least: real batches pair lengths that are less alike. The other ways' sums are within
    0.3 % of what torch's profiler counts.
    """
    from datasets import Dataset

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    weights = layers * hidden * (2 * hidden + 2 * narrow + 3 * config["intermediate_size"])
    sizes = sorted((len(row["input_ids"]) for row in rows), reverse=True)
    widths = sizes  # of each conversation as it is computed
    if way == "usual":
        widths = [length] * len(rows)
    elif way == "trl":  # one long text cut into pieces, the last one shorter
        widths = [length] * (sum(sizes) // length) + [sum(sizes) % length]
    elif way == "llamafactory":
        width, packs = neat_packs(sizes)
        widths = [width] * packs
    elif way == "grouped":
        batch = batch_of(way, length)
        widths = [sizes[number - number % batch] for number in range(len(sizes))]
    again = 2 if way == "usual" else 0  # each layer runs forward once more before its backward
    tokens = logits = sum(widths)
    products = 2 * (6 + again)
    if way not in OTHERS:  # two products forward, five backward, which forms the scores again
        _, packs, shared = packed(way, Dataset.from_list(rows), length)
        tokens -= shared * (len(rows) - packs)
        logits, products = sum(label != -100 for row in rows for label in row["labels"][1:]), 7
    return {
        "layers": (4 + again) * weights * tokens,
        "lm_head": 4 * logits * config["vocab_size"] * hidden,
        "attention": products * hidden * layers * sum(width * width for width in widths),
    }


class Way:
    """The process of one way, loaded and waiting for its turns."""

    def __init__(self, name: str, args: argparse.Namespace, rows: Path, log: IO[str]) -> None:
        python = getattr(args, name) if name in SEPARATE else sys.executable
        command = [python, __file__, "--way", name, "--base", str(args.base), "--length", str(args.length)]
        command += ["--rows", str(rows), "--layers", args.layers]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self.name, self.log = name, log
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        self.answer()

    def turn(self) -> dict[str, Any]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of JSON; other output of libraries is skipped."""
        for line in self.process.stdout:
            if line.startswith('{"'):
                return json.loads(line)
        self.log.seek(0)
        raise SystemExit(
            f"{self.name} ended with {self.process.wait()}, expected an answer:\n{self.log.read()[-3000:]}"
        )

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(args: argparse.Namespace, rows: Rows, file: Path) -> dict[str, list[dict[str, Any]]]:
    """All turns of all ways, without the warm-up."""
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    with contextlib.ExitStack() as stack:
        running = []
        for name in args.ways:
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            running.append(Way(name, args, file, log))
            stack.callback(running[-1].close)
        for number in range(args.repeats + 1):  # whoever is first finds another machine: the order alternates
            for way in running if number % 2 else running[::-1]:
                one = way.turn()
                said = f"{way.name} {number}: {one['seconds']:.1f} s, loss {one['loss']:.4f}"
                print(said, file=sys.stderr, flush=True)
                if number:
                    turns[way.name].append(one)
    return turns


def summary(turns: dict[str, list[dict[str, Any]]], rows: Rows, work: dict[str, float]) -> dict[str, Any]:
    """Medians over each way's turns, and its speed relative to the others in the same turns.

    work: `flop` of a turn, by way; ways without an optimization have none.
    """
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(label != -100 for row in rows for label in row["labels"][1:])
    out: dict[str, Any] = {}
    for way, each in turns.items():
        speeds = [tokens / one["seconds"] for one in each]
        out[way] = {
            "tokens_per_second": round(statistics.median(speeds), 1),
            "from_to": [round(min(speeds), 1), round(max(speeds), 1)],
            "trained_per_second": round(statistics.median(trained / one["seconds"] for one in each), 1),
            "share_of_matmul": round(
                statistics.median(work["ours"] / one["seconds"] / one["gflops"] / 1e9 for one in each), 3
            ),
            "peak_mb": round(max(one["peak_mb"] for one in each)),
            "loss": round(each[-1]["loss"], 4),
        }
        if way in work:
            out[way]["times_work"] = round(work[way] / work["ours"], 2)
        for other in ("ours", "usual"):
            if other in turns:
                ratios = [theirs["seconds"] / one["seconds"] for theirs, one in zip(turns[other], each, strict=True)]
                out[way][f"times_{other}"] = round(statistics.median(ratios), 2)
                out[way][f"times_{other}_from_to"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "weights" / "smollm2-135m-instruct")
    parser.add_argument("--corpus", type=Path, help="a prepared corpus")
    parser.add_argument("--length", type=int, default=512, help="longest conversation, in tokens")
    parser.add_argument("--conversations", type=int, default=8, help="conversations per turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way after the warm-up")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["ours", "int8", "usual", "grouped"])
    for name in SEPARATE:
        parser.add_argument(f"--{name}", default="", metavar="PYTHON", help=f"of an environment with {name}")
    parser.add_argument("--layers", choices=LAYERS, default="qv", help="linear layers with an adapter: q and v, or all")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    LORA["target_modules"] = list(LAYERS[args.layers])
    if args.way:
        child(args.way, args.base, json.loads(args.rows.read_text(encoding="utf-8")), args.length)
        return 0
    if not args.corpus:
        parser.error(f"--corpus is missing: `make bench` prepares .cache/bench/corpus-{args.length}")
    rows = sample(args.base, args.corpus, args.length, args.conversations)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps(rows), encoding="utf-8")
        turns = measure(args, rows, file)
    sizes = [len(row["input_ids"]) for row in rows]
    work = {way: sum(flop(way, args.base, rows, args.length).values()) for way in {"ours", *args.ways} - {*LEVERS}}
    head = {
        "length": args.length,
        "layers": args.layers,
        "conversations": len(rows),
        "tokens": sum(sizes),
        "mean_length": sum(sizes) // len(sizes),
    }
    head |= {"mflop_per_token": round(work["ours"] / sum(sizes) / 1e6), "repeats": args.repeats}
    head["load"] = round(os.getloadavg()[0], 1)
    print(json.dumps(head | {"ways": summary(turns, rows, work)}))
    return 0


if __name__ == "__main__":
    from recipe.core.cli import entry

    sys.exit(entry(main))
