"""Train a LoRA adapter on a frozen base: one TOML file in, runs/<name>/<id>/ out. The same command resumes."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.conversations.packing import fill
from recipe.core import config as configs
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import UnfitError
from recipe.core.files import atomic_folder, digest
from recipe.core.manifest import check_intact, completed, differences, hash_inputs, write_manifest
from recipe.core.run import Run
from recipe.core.text import say, show
from recipe.environment import gpu
from recipe.planning import sizing

if TYPE_CHECKING:
    import torch

STAGE = "train"


def run(config: Config) -> dict[str, Any]:
    """Train, or go on with, or find done, the run that `config` describes; the manifest of its folder.

    The run's id is the digest of everything that can change the result (settings, base, corpus), so the same command
    finds its own checkpoints, and another config never resumes from them.
    """
    from transformers import logging

    from recipe.model import accumulation
    from recipe.model.adapter import add_adapter
    from recipe.model.load import default_device, load_base, load_tokenizer
    from recipe.training import dataset
    from recipe.training.callbacks import Interruption
    from recipe.training.resume import check_packs, newest_checkpoint
    from recipe.training.trainer import build_trainer

    sizing.check_numbers(config)
    where = default_device()
    check_device(config, where)
    logging.set_verbosity_error()
    (inputs, copy), settings = inputs_of(config), settings_of(config)
    run_folder = run_of(config, settings, inputs)
    folder = run_folder.folder
    if manifest := completed(folder, STAGE, settings, inputs):
        run_folder.point_latest()
        say(f"{folder} is trained already: its manifest holds")
        return manifest
    say_if_another_is_unfinished(run_folder, config)
    run_folder.begin(config)

    base, corpus = Path(config.base.path), Path(config.corpus.path)
    tokenizer = load_tokenizer(base)
    rows = dataset.encode_file(corpus / "train.jsonl", tokenizer, config.corpus.template)
    val_rows = dataset.encode_file(corpus / "val.jsonl", tokenizer, config.corpus.template)

    checkpoint = newest_checkpoint(run_folder.checkpoints)
    if checkpoint:
        check_packs(checkpoint, dataset.packs_of(rows, config.train, dataset.shared_start(rows)))
    recomputed = recomputed_layers(config, where)
    say(f"load {base} as {config.base.precision} on {where}")
    tuned = add_adapter(load_base(base, config.base.precision, where, copy), config.lora, config.train.seed)
    loop = build_trainer(tuned, config.train, folder, rows, val_rows, where.type == "cuda", recomputed)
    if config.train.matmul_accumulation == "fp16":
        accumulation.choose(tuned, folder, config.train.micro_batch_tokens, where)
    if checkpoint:
        say(f"go on from {checkpoint}")
    interruption = Interruption()
    loop.add_callback(interruption)
    with interruption.listening():
        loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interruption.asked and loop.state.global_step < loop.state.max_steps:
        say(f"saved after step {loop.state.global_step} of {loop.state.max_steps}")
        raise KeyboardInterrupt

    held_out = loop.evaluate()["eval_loss"]
    save_adapter(tuned, run_folder.adapter)
    return write_manifest(folder, STAGE, settings, inputs, results_of(loop, rows, held_out), only=("adapter",))


def check_device(config: Config, where: "torch.device") -> None:
    """Raises UnfitError for what this device cannot do, before anything is read."""
    import torch

    if where.type != "cuda":
        if reason := sizing.why_not_cpu(config, sizing.known_shape(config)):
            raise UnfitError(reason)
        return
    major, minor = torch.cuda.get_device_capability(where)
    architectures = torch.cuda.get_arch_list()
    if not gpu.has_code((major, minor), architectures):
        raise UnfitError(
            f"found {torch.cuda.get_device_name(where)} of compute capability {major}.{minor}, expected a card that "
            f"torch has code for ({' '.join(architectures)}); use a Tesla P100"
        )


def recomputed_layers(config: Config, where: "torch.device") -> int:
    """train.recompute as a number; auto goes by the memory that is free now, so it is asked before anything is loaded.

    Raises UsageError on a number that the base does not have.
    """
    import torch

    on_card = where.type == "cuda"
    free = torch.cuda.mem_get_info(where)[0] if on_card else sizing.available_memory()
    shape, _ = sizing.read_shape(config, None)
    step = sizing.step_of(config, half=on_card)
    count = sizing.recomputed_layers(config, shape, step, free - sizing.MARGIN_MIB * sizing.MIB)
    if count:
        say(f"{count} of {shape.num_hidden_layers} layers recompute: {free / 2**30:.1f} GB are free on {where}")
    return count


def inputs_of(config: Config) -> tuple[dict[str, str], Path | None]:
    """(what the run is made from, by hash; the base's quantised copy); all must still be what their manifests say.

    Where there is a copy, the weights it was made from are neither read nor hashed.
    """
    from recipe.model import quantized

    base = Path(configs.required(config, "base.path"))
    corpus = Path(configs.required(config, "corpus.path"))
    copy = quantized.find(base, config.base.precision)
    check_intact(base, but=".safetensors" if copy else "")
    check_intact(corpus)
    return hash_inputs({"base": base, "corpus": corpus}), copy


def settings_of(config: Config) -> dict[str, Any]:
    """The part of the config that can change the adapter."""
    return {
        "name": config.name,
        "template": config.corpus.template,
        "precision": config.base.precision,
        "lora": configs.hashed(config.lora),
        "train": configs.hashed(config.train),
    }


def run_of(config: Config, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Run:
    """The run whose id is the digest of these settings and inputs."""
    return Run.of(config, digest({"config": settings, "inputs": inputs})[:12])


def say_if_another_is_unfinished(run: Run, config: Config) -> None:
    """A changed config makes another run; nobody should find out after a day that theirs started over."""
    if not (other := run.unfinished_latest()):
        return
    changed = "; ".join(differences(configs.hashed(other.config()), configs.hashed(config))) or "its base or corpus"
    say(f"this starts a new run: {other.folder.name} is unfinished and differs in {changed}")


def save_adapter(tuned: Any, folder: Path) -> None:
    """The adapter alone, checked as it lies on the disk before it takes its place."""
    from recipe.model.adapter import check_adapter

    with atomic_folder(folder, ours=True) as partial:
        tuned.save_pretrained(str(partial))
        (partial / "README.md").unlink(missing_ok=True)  # peft's empty model card
        check_adapter(partial)


def results_of(loop: Any, rows: Any, held_out: float) -> dict[str, Any]:
    """The numbers of a run that are the same on every replay."""
    losses = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]
    labels = rows.with_format("numpy")["labels"]
    sizes = [len(sample) for sample in labels]
    return {
        "steps": loop.state.global_step,
        "packs": len(loop.packs),
        "shared_tokens": loop.shared,
        "packs_filled": fill(loop.packs, sizes, loop.budget, loop.shared),
        "samples": len(rows),
        "tokens": sum(sizes),
        "trained_tokens": int(sum((sample[1:] != -100).sum() for sample in labels)),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "held_out_loss": held_out,
    }


def preview(config: Config) -> dict[str, Any]:
    """What --dry-run says: where the run would lie, from what, and how many steps it would take."""
    from recipe.model.load import load_tokenizer
    from recipe.training import dataset

    sizing.check_numbers(config)
    (inputs, _), settings, train = inputs_of(config), settings_of(config), config.train
    tokenizer = load_tokenizer(Path(config.base.path))
    rows = dataset.encode_file(Path(config.corpus.path) / "train.jsonl", tokenizer, config.corpus.template)
    packs = dataset.packs_of(rows, train, dataset.shared_start(rows))
    return {
        "run": str(run_of(config, settings, inputs).folder),
        "samples": len(rows),
        "tokens_per_step": train.micro_batch_tokens * train.gradient_accumulation_steps,
        "steps": len(packs) // train.gradient_accumulation_steps,
        "inputs": inputs,
    }


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.train --config recipe/configs/demo.toml")
    args = parser.parse_args(argv)
    config = load_config(args)
    if args.dry_run:
        plan = preview(config)
        work = f"{plan['samples']} samples in {plan['steps']} steps of at most {plan['tokens_per_step']:,} tokens"
        show(plan, f"would train {work} -> {plan['run']}", args.json)
        return 0
    manifest = run(config)
    results = manifest["results"]
    latest = Run.latest(config)
    text = (
        f"trained {results['steps']} steps on {results['trained_tokens']:,} assistant tokens; "
        f"held-out loss {results['held_out_loss']:.4f}; adapter in {latest}/adapter\n"
        f"next: python -m recipe.evaluate --run {latest}"
    )
    show(manifest, text, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
