"""Prove the plan on this device in minutes, without the weights: real steps on a random base of the same shape."""

import contextlib
import dataclasses
import datetime
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import UnfitError, UsageError
from recipe.core.files import atomic_file, existing_folder, free_bytes, lock_file, remove
from recipe.core.run import Run
from recipe.core.text import say, show
from recipe.core.versions import code_sha256, environment
from recipe.environment import measure
from recipe.planning import sizing
from recipe.planning.hardware import CONTEXT_MIB, MARGIN_MIB, MIB
from recipe.planning.sizing import KNOWN, MemoryPlan
from recipe.planning.throughput import CorpusSize, count_flop, read_corpus_size
from recipe.reports import rehearsal as report

if TYPE_CHECKING:
    import torch

    from recipe.training.rehearsal import Rehearsed

STAGE = "rehearse"
RESULTS = Path("results")
DISK_BYTES = 256 << 20  # written and read to measure the disk
MILLION = 1_000_000


def run(config: Config, size: str | None = None, tokens: int | None = None) -> dict[str, Any]:
    """Rehearse the run of `config` on this device; its measurements beside the plan.

    Raises UnfitError before anything is allocated if the plan does not fit here.
    """
    from transformers import logging

    from recipe.model.load import default_device

    if config.base.split > 1:
        raise UsageError(
            f"base.split is {config.base.split}, expected 1: a rehearsal is of one GPU; pass --set base.split=1 with a "
            "base that fits one"
        )
    logging.set_verbosity_error()
    device = default_device()
    plan = plan_here(config, device, size)
    check_fits(config, plan)
    corpus = read_corpus_size(config, tokens)
    say(f"rehearse {config.name} on {measure.device_name(device)}: the plan is {plan.estimate.peak // MIB:,} MiB")
    shapes, rows = plan.shape.linears().values(), config.train.micro_batch_tokens
    probes = measure.probe(device, shapes, rows)  # before the base takes the memory
    with scratch_folder(existing_folder(Path(config.runs))) as scratch:
        disk = measure.disk_speed(scratch, DISK_BYTES)
        measured = train(config, plan, device, Run(scratch / "run"))
    return as_json(config, plan, device, corpus, measured, probes, disk)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty folder that is removed at the end, also when the next rehearsal finds it after a kill."""
    folder = parent / ".rehearse"
    with lock_file(parent / ".rehearse.lock", f"another rehearsal runs in {parent} and would be measured too: wait"):
        remove(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            remove(folder)


def plan_here(config: Config, device: "torch.device", size: str | None) -> MemoryPlan:
    """The memory plan for the memory that is free now."""
    import torch

    from recipe.pascal.dtypes import compute_dtype

    cuda = device.type == "cuda"
    if not cuda and (reason := sizing.explain_no_cpu(config, sizing.read_shape(config, size)[0])):
        raise UnfitError(reason)
    free = torch.cuda.mem_get_info(device)[0] if cuda else sizing.available_memory()
    return sizing.plan_memory(config, free - MARGIN_MIB * MIB, cuda, size, compute_dtype(device) == torch.float16)


def check_fits(config: Config, plan: MemoryPlan) -> None:
    """Raises UnfitError if memory or disk are too small for the rehearsal."""
    if not plan.fits:
        raise UnfitError(
            f"{config.name} needs {plan.estimate.peak // MIB:,} MiB, expected at most {max(plan.budget, 0) // MIB:,} "
            f"(free memory less {MARGIN_MIB:,}): stop other programs, or change the config as `make plan` advises"
        )
    if free_bytes(Path(config.runs)) < 2 * DISK_BYTES:
        raise UnfitError(f"less than {2 * DISK_BYTES / 1e6:.0f} MB are free at {config.runs}: free some")


def train(config: Config, plan: MemoryPlan, device: "torch.device", scratch: Run) -> "Rehearsed":
    """The steps, on a random base that is prepared as `train` prepares a real one."""
    import torch
    from transformers import LlamaConfig

    from recipe.model import accumulation
    from recipe.model.adapter import add_adapter
    from recipe.model.prepare import prepare_for_training
    from recipe.model.random_base import random_base
    from recipe.pascal.gemm import int8_shapes
    from recipe.training.determinism import deterministic
    from recipe.training.faults import leave_memory
    from recipe.training.rehearsal import rehearse

    if device.type == "cuda":
        leave_memory([device])
        torch.cuda.reset_peak_memory_stats(device)
    shape = LlamaConfig(**dataclasses.asdict(plan.shape), max_position_embeddings=config.corpus.max_length)
    base = random_base(shape, config.base.precision, device)
    model = add_adapter(base, config.lora, config.train.seed)
    choice = None
    if config.train.matmul_accumulation == "fp16":
        file = scratch.folder.with_name("matmul.json")
        choice = accumulation.choose(file, int8_shapes(model), config.train.micro_batch_tokens, device)
    prepare_for_training(model, plan.recomputed, choice)
    with deterministic(device.type == "cuda"):  # as a run
        return rehearse(model, config.train, config.corpus.max_length, plan.shape.vocab_size, scratch)


def as_json(
    config: Config,
    plan: MemoryPlan,
    device: "torch.device",
    corpus: CorpusSize,
    measured: "Rehearsed",
    probes: dict[str, Any],
    disk: dict[str, float],
) -> dict[str, Any]:
    """The result as plain values. It holds no path, host name or secret, so that it can be sent in."""
    flop = sum(count_flop(plan, config.corpus.max_length, 1.0).values())
    limit = limit_tokens_per_second(plan, probes["matmul"], flop)
    known = measure.known_card(device)
    planned = [rate * 1e12 / flop for rate in known.tflops] if known else None
    count = round((corpus.tokens or MILLION) * config.train.epochs)
    return {
        "config": config.name,
        "date": datetime.date.today().isoformat(),
        "device": measure.describe_device(device),
        "shape": dataclasses.asdict(plan.shape),
        "settings": {
            "precision": config.base.precision,
            "micro_batch_tokens": config.train.micro_batch_tokens,
            "max_length": config.corpus.max_length,
            "packs_per_step": measured.tokens_per_step // config.train.micro_batch_tokens,
            "steps": len(measured.losses),
            "recomputed_layers": plan.recomputed,
            "optimizer": config.train.optimizer,
            "matmul_accumulation": config.train.matmul_accumulation,
            "lora": dataclasses.asdict(config.lora),
        },
        "memory": {
            "measured_mib": round(measured.peak / MIB, 1),
            "planned_mib": round(plan.estimate.peak / MIB, 1),
            "reserved_mib": None if measured.reserved is None else round(measured.reserved / MIB),
            "context_mib": CONTEXT_MIB,
        },
        "speed": {
            "tokens_per_second": round(measured.tokens_per_second, 1),
            "step_seconds": [round(seconds, 3) for seconds in measured.step_seconds],
            "planned_tokens_per_second": [round(speed, 1) for speed in planned] if planned else None,
            "limit_tokens_per_second": round(limit, 1),
        },
        "hours": {
            "tokens": count,
            "measured": round(count / measured.tokens_per_second / 3600, 2),
            "planned": [round(count / speed / 3600, 2) for speed in planned] if planned else None,
        },
        "checks": {
            "save_seconds": round(measured.save_seconds, 3),
            "evaluate_seconds": round(measured.evaluate_seconds, 3),
            "losses": measured.losses,
            "resume_difference": measured.resumed_loss - measured.losses[len(measured.losses) // 2],
            **{key: probes[key] for key in ("int8_error", "attention_error", "tolerance")},
        },
        "matmul": probes["matmul"],
        "disk": disk,
        "loader_tokens_per_second": round(measured.loader_tokens_per_second),
        "code": code_sha256(),
        "environment": environment(),
    }


def limit_tokens_per_second(plan: MemoryPlan, rows: list[dict[str, Any]], flop: int) -> float:
    """Tokens per second if all FLOP ran at the measured rate of the layers' matmuls, each weighted by its work."""
    rates = {(row["fan_in"], row["fan_out"]): max(row["fp32_tflops"], row["fp16_tflops"] or 0) for row in rows}
    work = {name: a * b for name, (a, b) in plan.shape.linears().items()}
    seconds = sum(size / rates[plan.shape.linears()[name]] for name, size in work.items())
    return sum(work.values()) / seconds * 1e12 / flop


def result_file(config: Config) -> Path:
    """Where a result is kept: one file for each device and config, the newest."""
    from recipe.model.load import default_device

    name = f"{measure.device_name(default_device())} {config.name}".lower()
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')[:120]}.json"


def main(argv: list[str] | None = None) -> int:
    example = "python -m recipe.rehearse --config recipe/configs/vicuna-7b-p100.toml"
    parser = build_parser(STAGE, __doc__ or "", example)
    parser.add_argument("--shape", choices=sorted(KNOWN), help="a LLaMA of this size, whatever is at base.path")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of one epoch if no corpus is prepared")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default {RESULTS}/<device>-<config>.json")
    parser.add_argument("--table", action="store_true", help=f"print what is in {RESULTS}/ as a table for the README")
    args = parser.parse_args(argv)
    if args.table:
        print(report.readme_table(RESULTS))
        return 0
    config = load_config(args)
    if args.dry_run:
        shape = sizing.read_shape(config, args.shape)[0]
        size = f"{shape.num_hidden_layers} layers of {shape.hidden_size}/{shape.intermediate_size}"
        text = f"would rehearse {config.name} on a random base: {size} in {config.base.precision}"
        show({"shape": vars(shape)}, text, args.json)
        return 0
    output = args.output or result_file(config)
    with atomic_file(output) as file:  # before the minutes of measuring: the folder may be read-only
        result = run(config, args.shape, args.tokens)
        json.dump(result, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
    show(result, f"{report.text(result)}\n\nwrote {output}: please open a pull request that adds it", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
