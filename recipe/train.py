"""Train a LoRA adapter on a frozen base: one TOML file in, runs/<name>/<id>/ out. The same command resumes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core import config as configs
from recipe.core.cli import build_parser, load_config
from recipe.core.config import Config
from recipe.core.errors import UnfitError, UsageError
from recipe.core.files import atomic_folder, digest, lock_file
from recipe.core.manifest import check_intact, completed, differences, hash_inputs, write_manifest
from recipe.core.run import RECORDED, Run
from recipe.core.text import say, show
from recipe.core.versions import code_sha256, environment
from recipe.environment import gpu
from recipe.planning import sizing
from recipe.planning.hardware import MARGIN_MIB, MIB
from recipe.training.launch import exit_with, read_launch
from recipe.training.signals import StopRequest

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from recipe.training.distributed import Ranks

STAGE = "train"


def run(config: Config) -> dict[str, Any]:
    """Train, or resume, or find finished, the run that `config` describes; returns its manifest.

    The run's id is the digest of everything that can change the result (settings, base, corpus). So the same command
    finds its own checkpoints, and another config never resumes from them.
    """
    launch = read_launch()
    with StopRequest(config.train.max_minutes, launched=launch.size > 1) as stop:
        import torch  # noqa: F401 - takes seconds, and may swallow a Ctrl-C
        from transformers import logging

        from recipe.model.load import default_device
        from recipe.training.distributed import join

        stop.raise_if_signaled()
        device = default_device()
        launch.check_steps(config.train.gradient_accumulation_steps)
        launch.check_split(config.base.split)
        check_requirements(config, device)
        logging.set_verbosity_error()
        with join(launch) as ranks:
            return find_or_train(config, device, ranks, stop)


def find_or_train(config: Config, device: "torch.device", ranks: "Ranks", stop: StopRequest) -> dict[str, Any]:
    """The manifest of the finished run. Of several processes the first writes all files; the others return the results.

    Raises RecipeError if the processes differ in anything that a run depends on.
    """
    from recipe.pascal.dtypes import compute_dtype
    from recipe.training.determinism import deterministic

    inputs, copy = read_inputs(config)
    settings = read_settings(config)
    ranks.check_equal(
        {"config": digest(configs.dump(config)), "device": f"{device.type} {compute_dtype(device)}"}
        | {"code": code_sha256(), "packages": digest(environment())}
        | {f"the hash of {name}": value for name, value in inputs.items()},
        "use one commit, one config and the same folders on all machines, and a GPU for each process",
    )
    opened = build_run(config, settings, inputs)
    manifest = completed(opened.folder, STAGE, settings, inputs) if not ranks.rank else None
    if ranks.share("finished" if manifest else ""):
        if manifest:
            opened.point_latest()
        say(f"{opened.folder} is already trained (manifest verified)")
        return manifest or {}
    report_unfinished(opened, config)
    do = train if config.train.epochs else adopt
    if ranks.rank:
        with deterministic(device.type == "cuda"):
            return {"results": do(config, opened, copy, device, ranks, stop)}
    with lock_file(opened.lock, f"another process trains in {opened.folder}: wait for it to end, or stop it"):
        opened.records()  # the results are recorded there: damage is found before the work, not after
        opened.begin(config)
        with deterministic(device.type == "cuda") as exceptions:
            results = do(config, opened, copy, device, ranks, stop)
        results["nondeterministic"] = sorted(exceptions)
        opened.record(*RECORDED)
        return write_manifest(opened.folder, STAGE, settings, inputs, results, only=("adapter",))


def train(
    config: Config, opened: Run, copy: Path | None, device: "torch.device", ranks: "Ranks", stop: StopRequest
) -> dict[str, Any]:
    """Train from the newest checkpoint to the end and save the adapter; the results for the manifest.

    `copy` is the quantized copy of the base, if there is one. Raises KeyboardInterrupt after a stop with a checkpoint.
    """
    from recipe.model.load import split_devices
    from recipe.training.faults import leave_memory
    from recipe.training.resume import share_checkpoint
    from recipe.training.setup import load_data, load_model
    from recipe.training.threads import FewerThreads
    from recipe.training.trainer import Stopped, build_trainer

    data, validation = load_data(config)
    checkpoint = share_checkpoint(opened.checkpoints, data.packs, config.train.keep_checkpoints, ranks)
    recompute = recomputed_layers(config, device, ranks.launch.local_size)
    if device.type == "cuda":
        leave_memory(split_devices(device, config.base.split))
    model = load_model(config, opened, copy, device, recompute, ranks)
    trainer = build_trainer(model, config.train, opened, data, validation, ranks)
    trainer.stop_requested = lambda: bool(stop.reason)
    trainer.signaled = lambda: stop.signaled
    if device.type == "cpu" and ranks.size == 1:
        trainer.add_callback(FewerThreads(lambda: trainer.packs[-1]["input_ids"].numel(), trainer.end_part))
    if checkpoint:
        say(f"resume from {checkpoint}")
    stop.raise_if_signaled()
    stop.saving = True
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        results = trainer.finish()
    except Stopped:
        trainer.save_last_step()
        step, last = trainer.state.global_step, trainer.state.max_steps
        done = f"saved after step {step} of {last}" if step else "stopped before the end of the first step"
        say(f"{stop.reason or 'another process was stopped'}: {done}")
        raise KeyboardInterrupt from None
    finally:
        stop.saving = False
    if not ranks.rank:
        save_adapter(model, opened.adapter, config)
    return dataclasses.asdict(results)


def adopt(
    config: Config, opened: Run, copy: Path | None, device: "torch.device", ranks: "Ranks", stop: StopRequest
) -> dict[str, Any]:
    """The adapter of `lora.start` as it is, as a run that every other stage can use; the results for the manifest."""
    from recipe.model.likelihood import validation_nll
    from recipe.model.load import load_tokenizer
    from recipe.training.dataset import PackedDataset, encode_file
    from recipe.training.setup import load_model

    file = Path(config.corpus.path) / "val.jsonl"
    rows = encode_file(file, load_tokenizer(Path(config.base.path)), config.corpus.template)
    model = load_model(config, opened, copy, device, 0, ranks)
    nll, tokens = validation_nll(model, PackedDataset(rows, config.train.micro_batch_tokens))
    if not ranks.rank:
        save_adapter(model, opened.adapter, config)
    return {"steps": 0, "trained_tokens": 0, "validation_loss": nll / tokens}


def check_requirements(config: Config, device: "torch.device") -> None:
    """Raises UsageError if settings contradict each other, UnfitError if the device cannot do this run.

    Nothing is read before.
    """
    import torch

    from recipe.model.load import split_devices

    sizing.check_numbers(config)
    split_devices(device, config.base.split)
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


def recomputed_layers(config: Config, device: "torch.device", processes: int = 1) -> int:
    """train.recompute as a number of layers; auto depends on free memory, so call this before anything is loaded.

    processes: those on this machine, which share its main memory. Raises UsageError if the base has fewer layers.
    """
    import torch

    from recipe.model.load import split_devices
    from recipe.pascal.dtypes import compute_dtype

    cuda = device.type == "cuda"
    devices = split_devices(device, config.base.split)
    free = min(torch.cuda.mem_get_info(each)[0] for each in devices) if cuda else sizing.available_memory() // processes
    half = compute_dtype(device) == torch.float16
    plan = sizing.plan_memory(config, free - MARGIN_MIB * MIB, cuda, half=half)
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
    from recipe.training.setup import load_data

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
    if not manifest:  # another process of the run tells the result
        return 0
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
    exit_with(main)
