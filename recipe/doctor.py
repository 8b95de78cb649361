"""Is this machine fit for the run? One line per check, a hint where something is wrong, a verdict; exit 3: unfit."""

import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST
from recipe.core.manifest import read_manifest, verify
from recipe.core.text import say, show, snippet, table
from recipe.environment import gpu, locks
from recipe.environment.gpu import MIB, Card, Check
from recipe.planning import sizing

if TYPE_CHECKING:
    from recipe.planning.memory import Shape

PYTHON = (3, 11)
GLIBC = (2, 28)  # the wheels of the lock are manylinux_2_28
HOST_BYTES = 4 << 30  # beside a card: torch with CUDA, one tensor, one shard of the quantised copy; assumed
TORCH_BYTES = 1 << 30  # Python, torch and transformers before any tensor; assumed
SPARE_BYTES = 500 << 20  # logs, metrics, and what a file system keeps for itself


def run(config: Config | None) -> list[Check]:
    """Every check, in the order of the report; those of a run (memory, disk, files) need its config."""
    shape = sizing.known_shape(config) if config else None
    if config:
        sizing.check_numbers(config)
    if config and shape:
        sizing.check_targets(config, shape)
    checks = [python(), glibc(), packages(), torch_cuda()]
    if checks[-1].verdict == "ok":
        checks += [*device(config, shape), *probes()]
        if config and shape and config.train.matmul_accumulation == "fp16":
            checks.append(sums(config, shape))
    if config and shape:
        checks += [ram(config, shape), *disk(config, shape)]
    if config:
        checks += [artefact("weights", config.base.path, "convert"), artefact("corpus", config.corpus.path, "corpus")]
    return checks


def python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] == PYTHON:
        return Check("python", "ok", version)
    return Check("python", "fail", version, "use 3.11: torch 2.0.1 has no wheel for a newer one and the lock is for it")


def glibc() -> Check:
    name, version = platform.libc_ver()
    parts = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if name == "glibc" and parts >= GLIBC:
        return Check("glibc", "ok", version)
    needed = ".".join(map(str, GLIBC))
    return Check("glibc", "fail", f"{name or 'none'} {version}".strip(), f"use a system with glibc {needed} or later")


def packages() -> Check:
    """Names and versions; `make pins` also hashes every file."""
    lock = locks.read_lock(locks.DOCKER / "requirements.lock")
    wrong = [said for name, version in lock.items() if (said := _difference(name, version))]
    if wrong:
        found = f"{len(wrong)} of {len(lock)} differ from the lock: {', '.join(wrong[:3])}"
        return Check("packages", "fail", found, "`make setup` in a clean checkout, or the image")
    return Check("packages", "ok", f"{len(lock)} as locked; `make pins` looks into their files")


def _difference(name: str, locked: str) -> str:
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if locks.same_version(installed, locked) else f"{name} {installed} instead of {locked}"


def torch_cuda() -> Check:
    """What torch was built with, whether or not there is a card."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"does not import: {snippet(error)}", "`make setup`, or the image")
    version = torch.version.cuda
    if version is not None and version.startswith("11."):
        return Check("torch", "ok", f"{torch.__version__} with CUDA {version}")
    found = f"{torch.__version__} with {f'CUDA {version}' if version else 'no CUDA'}"
    return Check("torch", "fail", found, "install the locked torch: CUDA 11 is the last with code for a P100 here")


def device(config: Config | None, shape: "Shape | None") -> Iterator[Check]:
    """What would train: the card as NVML or, failing that, torch sees it; the CPU where there is none."""
    import torch

    found, seen = gpu.look(), torch.cuda.is_available()
    if isinstance(found, Card):
        yield gpu.driver(found.driver, locks.read_drivers(locks.DOCKER / "pins.toml"))
        yield from of_card(found, config, shape)
        if not seen:
            hint = "check CUDA_VISIBLE_DEVICES and, in a container, --gpus all with NVIDIA_DRIVER_CAPABILITIES=compute"
            yield Check("torch sees", "fail", "no card, though the driver names one", hint)
    elif seen:
        yield dataclasses.replace(found, verdict="warn", found=f"{found.found}, though torch sees a card")
        free, total = torch.cuda.mem_get_info()
        known = Card("", torch.cuda.get_device_name(), torch.cuda.get_device_capability(), total, free, ())
        yield from of_card(known, config, shape)
    elif config and shape and not sizing.why_not_cpu(config, shape):
        yield dataclasses.replace(found, verdict="warn", hint="")
        fit = f"judged without one: {config.name} is small enough for a CPU"
        yield Check("no card", "warn", fit, "nothing to do; on a card it would be faster")
    else:
        yield found
        what = config.name if config else "a real run"
        yield Check("no card", "fail", f"judged without one, and {what} needs it", "rent or fit a 16 GB Tesla P100")


def of_card(found: Card, config: Config | None, shape: "Shape | None") -> Iterator[Check]:
    """Its kind, and its memory against what the plan needs."""
    import torch

    yield gpu.kind(found, torch.cuda.get_arch_list())
    needed = None
    if config and shape:
        needed = _peak(config, shape, True, found.free - (sizing.CONTEXT_MIB + sizing.MARGIN_MIB) * MIB)
        needed += sizing.CONTEXT_MIB * MIB
    yield gpu.memory(found, needed)


def probes() -> Iterator[Check]:
    """int8 and attention, forward and backward, on the device that would train."""
    import torch

    from recipe.pascal import probe

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if where.type == "cuda" else torch.float32
    for name, work in (("int8 probe", probe.int8), ("attention probe", probe.attention)):
        try:
            result = work(where, dtype)
        except RuntimeError as error:
            reason = snippet(str(error).partition("\n")[0])
            yield Check(name, "fail", f"does not run on {where}: {reason}", "`make pins` says whether code is missing")
            continue
        found = f"error {result.error:.1e} against fp32 on {where} in {str(dtype).removeprefix('torch.')}"
        if result.passed:
            yield Check(name, "ok", found)
        else:
            found = found if result.finite else f"inf or NaN on {where}"
            yield Check(name, "fail", found, "another card or driver: a run would end in NaN or nonsense")


def sums(config: Config, shape: "Shape") -> Check:
    """fp16 sums beside fp32 sums at the run's own shapes: what `train` would take."""
    import torch

    from recipe.pascal import probe

    if not torch.cuda.is_available():
        return Check(
            "fp16 sums", "warn", "not asked: there is no card", "set train.matmul_accumulation = fp32 without one"
        )
    tokens, shapes = config.train.micro_batch_tokens, set(shape.linears().values())
    try:
        races = probe.benchmark_gemm(torch.device("cuda"), shapes, tokens)
    except RuntimeError as error:
        reason = snippet(str(error).partition("\n")[0])
        return Check("fp16 sums", "warn", f"do not run: {reason}", "the run will keep fp32 sums")
    found = "; ".join(map(str, races))
    if any(race.fp16_wins for race in races):
        return Check("fp16 sums", "ok", found)
    return Check("fp16 sums", "warn", found, "not faster and right anywhere: the run will keep fp32 sums")


def _peak(config: Config, shape: "Shape", half: bool, budget: int) -> int:
    """Bytes of the largest step, with as many layers recomputed as the config says or, by itself, `budget` asks for."""
    from recipe.planning import memory

    step = sizing.step_of(config, half)
    return memory.estimate(shape, step, sizing.recomputed_layers(config, shape, step, budget)).peak


def ram(config: Config, shape: "Shape") -> Check:
    """On a CPU the whole run lies there, beside a card only what is on its way to it."""
    import torch

    on_cpu = not torch.cuda.is_available() and not sizing.why_not_cpu(config, shape)
    available = sizing.available_memory()
    needed = _peak(config, shape, False, available - TORCH_BYTES) + TORCH_BYTES if on_cpu else HOST_BYTES
    found = f"{available / 2**30:.1f} GB available, {needed / 2**30:.1f} needed"
    if available >= needed:
        return Check("RAM", "ok", found)
    return Check("RAM", "fail", found, "stop other programs, raise the container's limit, or lower micro_batch_tokens")


def disk(config: Config, shape: "Shape") -> Iterator[Check]:
    """Room for what the run will write: converted weights and their quantised copy, checkpoints and the adapter."""
    from recipe.planning import memory

    step = sizing.step_of(config)
    base = Path(config.base.path)
    weights = 0
    if not (base / MANIFEST).is_file():
        weights += memory.weight_bytes(shape, sizing.with_precision(step, config.base.dtype))
    if config.base.precision in ("int8", "nf4") and not base.with_name(f"{base.name}-{config.base.precision}").is_dir():
        weights += memory.weight_bytes(shape, step)
    saved = memory.adapter_parameters(shape, step) * (4 + memory.OPTIMIZER_BYTES[config.train.optimizer])
    runs = saved * (config.train.keep_checkpoints + 1) + SPARE_BYTES  # one more while the oldest still lies there
    for name, place, needed in (("disk, weights", base, weights), ("disk, runs", Path(config.runs), runs)):
        folder = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(folder).free
        found = f"{free / 1e9:.1f} GB free at {place}, {needed / 1e9:.1f} needed"
        if not os.access(folder, os.W_OK):
            yield Check(name, "warn", f"{place} is read-only", "fine for finished weights; a run writes to runs")
        elif free < needed:
            yield Check(name, "fail", found, "free some, or name another place in the config")
        else:
            yield Check(name, "ok", found)


def artefact(name: str, path: str, stage: str) -> Check:
    """There, and every file still has its hash."""
    if not path or not (Path(path) / MANIFEST).is_file():
        return Check(
            name, "fail", f"{path or 'no path'}: not there yet", f"`make {stage}` with the same CONFIG makes it"
        )
    try:
        files = read_manifest(Path(path))["outputs"].values()
        say(f"hashing {path}, {sum(file['bytes'] for file in files) / 1e9:.1f} GB")
        problems = verify(Path(path))
    except RecipeError as error:
        problems = [str(error)]
    if problems:
        return Check(name, "fail", problems[0], f"make {path} again with `make {stage}`")
    return Check(name, "ok", f"{path}: {len(files)} files, every hash holds")


def verdict(checks: list[Check]) -> str:
    """One line."""
    failed = [check.name for check in checks if check.verdict == "fail"]
    warned = [check.name for check in checks if check.verdict == "warn"]
    if failed:
        return f"UNFIT: {', '.join(failed)}"
    return "FIT" + (f", but look at: {', '.join(warned)}" if warned else "")


def text(checks: list[Check]) -> str:
    """The report for a person."""
    rows = [["check", "", "found"], *([check.name, check.verdict, check.found] for check in checks)]
    lines = table(rows).splitlines()
    hints = [f"{check.name}: {check.hint}" for check in checks if check.hint]
    return "\n".join([*lines, "", *hints, verdict(checks)])


def main(argv: list[str] | None = None) -> int:
    example = "python -m recipe.doctor --config recipe/configs/vicuna-7b-p100.toml"
    args = build_parser("doctor", __doc__ or "", example).parse_args(argv)
    checks = run(load_config(args) if args.config else None)
    fit = all(check.verdict != "fail" for check in checks)
    result: dict[str, Any] = {"fit": fit, "verdict": verdict(checks), "checks": [vars(check) for check in checks]}
    show(result, text(checks), args.json)
    return 0 if fit else 3


if __name__ == "__main__":
    sys.exit(entry(main))
