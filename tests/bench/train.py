"""Tokens per second of this recipe's training beside the usual way's, on real conversations; prints one JSON object.

    python -m recipe.corpus --source ShareGPT_V3_unfiltered_cleaned_split.json --output .cache/sharegpt-512 \
        --tokenizer weights/smollm2-135m-instruct --set corpus.max_length=512
    python tests/bench/train.py --corpus .cache/sharegpt-512 --length 512

All ways train the same LoRA on the same base and conversations with the same optimizer, in fp32 (`int8`: this recipe's
default base). `usual` is Hugging Face's Trainer as most recipes have it: padded to full length, the whole model
checkpointed, eager attention, all logits; `grouped` pads to the longest of a batch of like lengths and keeps the
activations. Each run is a process of its own, and the ways take turns, so that what else the machine does meets all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

WAYS = ("packed", "int8", "usual", "grouped")
WANTED = {512: 2.0, 2048: 5.0}  # times the usual way's useful tokens/s
BATCH = {"usual": 1, "grouped": 2}


def child(way: str, base: Path, corpus: Path, length: int, conversations: int) -> dict[str, Any]:
    """One run in this process: useful and trained tokens, seconds of training, last loss, matmul rate."""
    import torch
    from transformers import logging

    from recipe import data, model
    from recipe.config import Lora

    logging.set_verbosity_error()
    lora = Lora(rank=8, alpha=16, dropout=0.0, target_modules=("q_proj", "v_proj"))
    rows = data.encode_file(corpus / "train.jsonl", model.load_tokenizer(base), "vicuna_v1.1")
    rows = rows.filter(lambda row: len(row["input_ids"]) <= length).shuffle(seed=0).select(range(conversations))
    with tempfile.TemporaryDirectory() as folder:
        make = ours if way in ("packed", "int8") else usual
        loop = make(way, base, lora, rows, length, Path(folder))
        wall, cpu = time.perf_counter(), time.process_time()
        loop.train()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    labels = [label for row in rows["labels"] for label in row[1:]]
    return {
        "tokens": sum(data.lengths(rows)),
        "trained": sum(label != model.IGNORED for label in labels),
        "seconds": wall,
        "cpu_seconds": cpu,
        "loss": next(entry["loss"] for entry in reversed(loop.state.log_history) if "loss" in entry),
        "gflops": matmul_rate(torch),
    }


def ours(way: str, base: Path, lora: Any, rows: Any, length: int, folder: Path) -> Any:
    """This recipe: packs, one causal call per conversation, a chunked loss, nothing recomputed."""
    import torch

    from recipe import data, model, trainer
    from recipe.config import Train
    from recipe.conversations.packing import pack

    packs = len(pack(data.lengths(rows), length, seed=0))
    train = Train(micro_batch_tokens=length, accumulation=packs, eval_steps=0)
    precision = "int8" if way == "int8" else "fp32"
    tuned = model.add_adapter(model.load(base, precision, torch.device("cpu")), lora, seed=0)
    return trainer.make(tuned, train, folder, rows, rows, on_card=False)


def usual(way: str, base: Path, lora: Any, rows: Any, length: int, folder: Path) -> Any:
    """Hugging Face's Trainer, one optimizer step over all conversations, as ours."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

    def pad(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = length if way == "usual" else max(len(sample["input_ids"]) for sample in samples)

        def column(fill: int, values: Any) -> torch.Tensor:
            return torch.tensor([[*value, *[fill] * (longest - len(value))] for value in values])

        return {
            "input_ids": column(0, [sample["input_ids"] for sample in samples]),
            "attention_mask": column(0, [[1] * len(sample["input_ids"]) for sample in samples]),
            "labels": column(-100, [sample["labels"] for sample in samples]),
        }

    set_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32, attn_implementation="eager")
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH[way],
        gradient_accumulation_steps=-(-len(rows) // BATCH[way]),
        num_train_epochs=1,
        group_by_length=way == "grouped",
        gradient_checkpointing=way == "usual",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        optim="adamw_torch",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return Trainer(model=get_peft_model(loaded, settings), args=arguments, data_collator=pad, train_dataset=rows)


def matmul_rate(torch: Any) -> float:
    """GFLOP/s of the model's own widest matmul, the best of a few: the limit that no way can pass."""
    a, b = torch.randn(512, 576), torch.randn(576, 1536)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 512 * 576 * 1536 / best / 1e9


def measure(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own, and its peak memory in MB."""
    command = [sys.executable, __file__, "--way", way, "--base", str(args.base), "--corpus", str(args.corpus)]
    command += ["--length", str(args.length), "--conversations", str(args.conversations)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        out = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}, expected 0: run it alone to see why")
    return json.loads(out.splitlines()[-1]) | {"peak_mb": usage.ru_maxrss / 1024}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a way's runs, and the spread of its speed."""
    speeds = [run["tokens"] / run["seconds"] for run in runs]
    return {
        "tokens_per_second": round(statistics.median(speeds), 1),
        "from_to": [round(min(speeds), 1), round(max(speeds), 1)],
        "trained_per_second": round(statistics.median(run["trained"] / run["seconds"] for run in runs), 1),
        "tokens_per_cpu_second": round(statistics.median(run["tokens"] / run["cpu_seconds"] for run in runs), 1),
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        "loss": round(runs[0]["loss"], 4),
        "matmul_gflops": round(max(run["gflops"] for run in runs), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "weights" / "smollm2-135m-instruct")
    parser.add_argument("--corpus", type=Path, required=True, help="a prepared corpus")
    parser.add_argument("--length", type=int, default=512, help="longest conversation, and tokens of a pack")
    parser.add_argument("--conversations", type=int, default=12, help="how many of them a run trains on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(child(args.way, args.base, args.corpus, args.length, args.conversations)))
        return 0
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    for _ in range(args.repeats):
        for way in args.ways:
            runs[way].append(measure(way, args))
    result: dict[str, Any] = {"length": args.length, "load": round(os.getloadavg()[0], 1)}
    result |= {way: summary(each) for way, each in runs.items()}
    if {"packed", "usual"} <= runs.keys():
        result["times_usual"] = round(result["packed"]["tokens_per_second"] / result["usual"]["tokens_per_second"], 2)
        result["wanted"] = WANTED.get(args.length)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
