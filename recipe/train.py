"""Train a LoRA adapter on a frozen base: one TOML file in, runs/<name>/<id>/ out. The same command resumes."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core import config as configs
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import UnfitError, UsageError
from recipe.core.files import atomic_folder, digest, lock_file
from recipe.core.manifest import check_intact, completed, differences, hash_inputs, write_manifest
from recipe.core.run import RECORDED, Run
from recipe.core.text import say, show
from recipe.environment import gpu
from recipe.planning import sizing
from recipe.planning.hardware import MARGIN_MIB, MIB
from recipe.training.launch import clear_launcher_variables
from recipe.training.signals import StopRequest

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from recipe.training.dataset import PackedDataset

STAGE = "train"


def run(config: Config) -> dict[str, Any]:
    """Train, or resume, or find finished, the run that `config` describes; returns its manifest.

    The run's id is the digest of everything that can change the result (settings, base, corpus). So the same command
    finds its own checkpoints, and another config never resumes from them.
    """
    clear_launcher_variables()
    with StopRequest(config.train.max_minutes) as stop:
        import torch  # noqa: F401 - takes seconds, and may swallow a Ctrl-C
        from transformers import logging

        from recipe.model.load import default_device
        from recipe.training.determinism import deterministic

        stop.raise_if_signaled()
        device = default_device()
        check_requirements(config, device)
        logging.set_verbosity_error()
        inputs, copy = read_inputs(config)
        settings = read_settings(config)
        opened = build_run(config, settings, inputs)
        if manifest := completed(opened.folder, STAGE, settings, inputs):
            opened.point_latest()
            say(f"{opened.folder} is already trained (manifest verified)")
            return manifest
        report_unfinished(opened, config)
        with lock_file(opened.lock, f"another process trains in {opened.folder}: wait for it to end, or stop it"):
            opened.begin(config)
            with deterministic(device.type == "cuda") as exceptions:
                results = (
                    train(config, opened, copy, device, stop)
                    if config.train.epochs
                    else adopt(config, opened, copy, device)
                )
            results["nondeterministic"] = sorted(exceptions)
            opened.record(*RECORDED)
            return write_manifest(opened.folder, STAGE, settings, inputs, results, only=("adapter",))


def train(config: Config, opened: Run, copy: Path | None, device: "torch.device", stop: StopRequest) -> dict[str, Any]:
    """Train from the newest checkpoint to the end and save the adapter; the results for the manifest.

    `copy` is the quantized copy of the base, if there is one. Raises KeyboardInterrupt after a stop with a checkpoint.
    """
    import torch

    from recipe.training.callbacks import SaveAndStop
    from recipe.training.resume import find_checkpoint
    from recipe.training.trainer import build_trainer

    data, validation = load_data(config)
    keep = config.train.keep_checkpoints
    checkpoint = find_checkpoint(opened.checkpoints, data.packs, torch.get_num_threads(), keep)
    model = load_model(config, opened, copy, device)
    trainer = build_trainer(model, config.train, opened, data, validation, cuda=device.type == "cuda")
    trainer.add_callback(SaveAndStop(stop))
    if checkpoint:
        say(f"resume from {checkpoint}")
    stop.raise_if_signaled()
    stop.saving = True
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stop.saving = False
    if stop.reason and trainer.state.global_step < trainer.state.max_steps:
        say(f"{stop.reason}: saved after step {trainer.state.global_step} of {trainer.state.max_steps}")
        raise KeyboardInterrupt
    results = trainer.finish()
    save_adapter(model, opened.adapter, config)
    return dataclasses.asdict(results)


def adopt(config: Config, opened: Run, copy: Path | None, device: "torch.device") -> dict[str, Any]:
    """The adapter of `lora.start` as it is, as a run that every other stage can use; the results for the manifest."""
    from recipe.model.likelihood import validation_nll
    from recipe.model.load import load_tokenizer
    from recipe.training.dataset import PackedDataset, encode_file

    file = Path(config.corpus.path) / "val.jsonl"
    rows = encode_file(file, load_tokenizer(Path(config.base.path)), config.corpus.template)
    model = load_model(config, opened, copy, device)
    nll, tokens = validation_nll(model, PackedDataset(rows, config.train.micro_batch_tokens))
    save_adapter(model, opened.adapter, config)
    return {"steps": 0, "trained_tokens": 0, "validation_loss": nll / tokens}


def load_data(config: Config) -> tuple["PackedDataset", "PackedDataset"]:
    """The packs of the run and those of the validation set."""
    from recipe.model.load import load_tokenizer
    from recipe.training.dataset import PackedDataset, encode_file

    corpus, settings = Path(config.corpus.path), config.train
    tokenizer = load_tokenizer(Path(config.base.path))
    rows, val_rows = (
        encode_file(corpus / name, tokenizer, config.corpus.template) for name in ("train.jsonl", "val.jsonl")
    )
    budget, per_step = settings.micro_batch_tokens, settings.gradient_accumulation_steps
    data = PackedDataset(rows, budget, settings.seed, settings.epochs, per_step)
    return data, PackedDataset(val_rows, budget)


def load_model(config: Config, opened: Run, copy: Path | None, device: "torch.device") -> "PeftModel":
    """The base with a new adapter, or with that of `lora.start`, prepared for training."""
    from recipe.model import accumulation
    from recipe.model.adapter import add_adapter
    from recipe.model.load import load_base, save_copy
    from recipe.model.prepare import prepare_for_training
    from recipe.model.start import continue_adapter
    from recipe.pascal.gemm import int8_shapes

    base, precision, settings = Path(config.base.path), config.base.precision, config.train
    recompute = recomputed_layers(config, device)
    say(f"load {base} as {precision} on {device}")
    frozen = load_base(base, precision, device, copy)
    if copy is None:
        save_copy(frozen, base, precision)
    model = (continue_adapter if config.lora.start else add_adapter)(frozen, config.lora, settings.seed)
    choice = None
    if settings.matmul_accumulation == "fp16":
        choice = accumulation.choose(opened.matmul, int8_shapes(model), settings.micro_batch_tokens, device)
    prepare_for_training(model, recompute, choice)
    return model


def check_requirements(config: Config, device: "torch.device") -> None:
    """Raises UsageError if settings contradict each other, UnfitError if the device cannot do this run.

    Nothing is read before.
    """
    import torch

    sizing.check_numbers(config)
    if device.type != "cuda":
        if reason := sizing.explain_no_cpu(config, sizing.known_shape(config)):
            raise UnfitError(reason)
        return
    major, minor = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    if not gpu.has_code((major, minor), architectures):
        raise UnfitError(
            f"found {torch.cuda.get_device_name(device)} of compute capability {major}.{minor}, expected a GPU that "
            f"torch has code for ({' '.join(architectures)}); use a Tesla P100"
        )


def recomputed_layers(config: Config, device: "torch.device") -> int:
    """train.recompute as a number of layers; auto depends on free memory, so call this before anything is loaded.

    Raises UsageError if the base has fewer layers.
    """
    import torch

    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else sizing.available_memory()
    plan = sizing.plan_memory(config, free - MARGIN_MIB * MIB, cuda)
    count, shape = plan.recomputed, plan.shape
    if count:
        layers = shape.num_hidden_layers
        say(f"activation checkpointing in {count} of {layers} layers: {free / 2**30:.1f} GB are free on {device}")
    return count


def read_inputs(config: Config) -> tuple[dict[str, str], Path | None]:
    """(hashes of base, corpus and lora.start, the quantized copy of the base if there is one), all verified.

    With a copy, the weights it was made from are neither read nor hashed.
    """
    from recipe.model.load import verify_base
    from recipe.model.start import hash_start

    base = Path(configs.required(config, "base.path"))
    corpus = Path(configs.required(config, "corpus.path"))
    copy = verify_base(base, config.base.precision)
    check_intact(corpus)
    return hash_inputs({"base": base, "corpus": corpus}) | hash_start(config), copy


def read_settings(config: Config) -> dict[str, Any]:
    """The part of the config that can change the adapter."""
    settings: dict[str, Any] = {
        "name": config.name,
        "template": config.corpus.template,
        "precision": config.base.precision,
        "lora": configs.hashed(config.lora),
        "train": configs.hashed(config.train),
    }
    if config.train.keep == "best" or config.train.patience:
        settings["eval_steps"] = config.train.eval_steps  # else it only decides when the loss is logged
    return settings


def build_run(config: Config, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Run:
    """The run whose id is the digest of these settings and inputs."""
    return Run.of(config, digest({"config": settings, "inputs": inputs})[:12])


def report_unfinished(opened: Run, config: Config) -> None:
    """Say that a changed config starts a new run, if the latest run of this name is another one and unfinished."""
    if not (other := opened.unfinished_latest()):
        return
    try:
        changed = "; ".join(differences(configs.hashed(other.config()), configs.hashed(config))) or "its base or corpus"
    except UsageError as error:
        changed = f"its config, which this version cannot read ({error})"
    say(f"this starts a new run: {other.folder.name} is unfinished and differs in {changed}")


def save_adapter(model: "PeftModel", folder: Path, config: Config) -> None:
    """Save the adapter with tokenizer, chat template and end tokens, and check it before it takes its place."""
    from recipe.checkpoints import hf_config, tokenizer
    from recipe.conversations.templates.export import write_chat_template
    from recipe.conversations.tokens import end_ids
    from recipe.model.adapter import check_adapter, write_adapter
    from recipe.model.load import load_tokenizer

    base, template = Path(config.base.path), config.corpus.template
    with atomic_folder(folder, replace_any=True) as partial:
        write_adapter(model, partial)
        tokenizer.copy_files(base, partial)
        write_chat_template(partial, template)
        hf_config.copy_generation(base, partial, end_ids(load_tokenizer(base), template))
        check_adapter(partial)


def preview(config: Config) -> dict[str, Any]:
    """The result of --dry-run: the folder of the run, its inputs and its number of steps."""
    sizing.check_numbers(config)
    inputs, _ = read_inputs(config)
    data = load_data(config)[0] if config.train.epochs else None
    per_step = config.train.gradient_accumulation_steps
    return {
        "run": str(build_run(config, read_settings(config), inputs).folder),
        "samples": len(data.lengths) if data else 0,
        "tokens_per_step": config.train.micro_batch_tokens * per_step,
        "steps": len(data) // per_step if data else 0,
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
        f"validation loss {results['validation_loss']:.4f}; adapter in {latest}/adapter\n"
        f"next: python -m recipe.evaluate --run {latest}"
    )
    show(manifest, text, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
