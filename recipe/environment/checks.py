"""Checks of the machine and of a run's files: Python, glibc, packages, torch, memory, disk, artefacts."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, existing_folder, holds_something
from recipe.core.manifest import read_manifest, verify
from recipe.core.run import quantized_folder
from recipe.core.text import say, snippet
from recipe.environment import locks
from recipe.planning import sizing
from recipe.planning.costs import disk_bytes
from recipe.planning.memory import Shape

PYTHON = (3, 11)
GLIBC = (2, 28)  # the wheels of the lock are manylinux_2_28
HOST_BYTES = 4 << 30  # main memory beside a GPU: torch with CUDA, one tensor, one shard of the int8 copy; assumed
TORCH_BYTES = 1 << 30  # Python, torch and transformers before any tensor; assumed


@dataclass(frozen=True)
class Check:
    """One line of the doctor: `verdict` is ok, warn, fail, or todo for a file that a stage will write.

    `hint` says what to do, empty if nothing.
    """

    name: str
    verdict: str
    found: str
    hint: str = ""


def check_python() -> Check:
    """The Python that torch 2.0.1 and the lock are for."""
    version = platform.python_version()
    if sys.version_info[:2] == PYTHON:
        return Check("python", "ok", version)
    return Check("python", "fail", version, "use Python 3.11: the lock is for it, and torch 2.0.1 has no newer wheel")


def check_glibc() -> Check:
    """The oldest glibc that the locked wheels run on."""
    name, version = platform.libc_ver()
    numbers = tuple(int(number) for number in version.split(".") if number.isdecimal())
    if name == "glibc" and numbers >= GLIBC:
        return Check("glibc", "ok", version)
    needed = ".".join(map(str, GLIBC))
    return Check("glibc", "fail", f"{name or 'none'} {version}".strip(), f"use a system with glibc {needed} or later")


def check_packages() -> Check:
    """Names and versions against the lock; `make pins` also hashes every file."""
    lock = locks.read_lock(locks.DOCKER / "requirements.lock")
    wrong = [difference for name, version in lock.items() if (difference := _difference(name, version))]
    if wrong:
        found = f"{len(wrong)} of {len(lock)} differ from the lock: {', '.join(wrong[:3])}"
        return Check("packages", "fail", found, "run `make setup` in a clean checkout, or use the image")
    return Check("packages", "ok", f"{len(lock)} as locked; `make pins` also checks their files")


def _difference(name: str, locked: str) -> str:
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if locks.same_version(installed, locked) else f"{name} {installed} instead of {locked}"


def check_torch() -> Check:
    """The CUDA that torch was built with, whether or not there is a GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"does not import: {snippet(error)}", "run `make setup`, or use the image")
    version = torch.version.cuda
    if version is not None and version.startswith("11."):
        return Check("torch", "ok", f"{torch.__version__} with CUDA {version}")
    found = f"{torch.__version__} with {f'CUDA {version}' if version else 'no CUDA'}"
    return Check("torch", "fail", found, "install the locked torch: its CUDA 11 wheel has code for a P100")


def check_ram(config: Config, shape: Shape, cuda: bool) -> Check:
    """Main memory for the whole run on a CPU, or for loading the base beside a GPU."""
    available, needed = sizing.available_memory(), HOST_BYTES
    if not cuda and not sizing.explain_no_cpu(config, shape):
        plan = sizing.plan_shape(config, shape, available - TORCH_BYTES, cuda=False)
        needed = plan.estimate.peak + TORCH_BYTES
    found = f"{available / 2**30:.1f} GB available, {needed / 2**30:.1f} GB needed"
    if available >= needed:
        return Check("RAM", "ok", found)
    return Check("RAM", "fail", found, "stop other programs, raise the container's limit, or lower micro_batch_tokens")


def check_disk(config: Config, shape: Shape) -> Iterator[Check]:
    """Free space for what the whole run still writes, one check for each file system."""
    disks: dict[int, list[Path]] = {}
    needed = missing_bytes(config, shape)
    for path in needed:
        folder = existing_folder(path)
        if not needed[path]:
            continue
        if os.access(folder, os.W_OK):
            disks.setdefault(folder.stat().st_dev, []).append(path)
        else:
            found = f"read-only, {needed[path] / 1e9:.1f} GB are to be written there"
            yield Check(f"disk, {path}", "fail", found, "choose another path in the config")
    for paths in disks.values():
        free, total = shutil.disk_usage(existing_folder(paths[0])).free, sum(needed[path] for path in paths)
        name = "disk" if len(disks) == 1 else f"disk, {', '.join(map(str, paths))}"
        found = f"{free / 1e9:.1f} GB free, {total / 1e9:.1f} GB needed until the merge"
        if free < total:
            yield Check(name, "fail", found, "free some, or choose other paths in the config")
        else:
            yield Check(name, "ok", found)


def missing_bytes(config: Config, shape: Shape) -> dict[Path, int]:
    """Bytes that a whole run writes, by the folder that they go to; without weights that are there already."""
    whole = disk_bytes(config, shape, sizing.build_step(config))
    source, base, runs = Path(config.base.source), Path(config.base.path), Path(config.runs)
    missing = {base: 0, runs: whole["checkpoints"] + whole["merged"]}
    if not (base / MANIFEST).is_file():
        missing[base] += whole["converted"]
        if config.base.source and not holds_something(source):
            missing[source] = whole["raw weights"]
    precision = config.base.precision
    if f"{precision} copy" in whole and not quantized_folder(base, precision).is_dir():
        missing[base] += whole[f"{precision} copy"]
    return missing


def check_artefact(name: str, path: str, stage: str) -> Check:
    """The artefact exists and every file still has its hash."""
    if not path or not (Path(path) / MANIFEST).is_file():
        hint = f"run `make {stage}` with the same CONFIG"
        if not path:
            return Check(name, "fail", "no path in the config", hint)
        if holds_something(Path(path)):
            return Check(name, "fail", f"{path} holds files that no stage made", "choose another path in the config")
        return Check(name, "todo", f"{path} does not exist yet", hint)
    try:
        files = read_manifest(Path(path))["outputs"].values()
        say(f"hashing {path}, {sum(file['bytes'] for file in files) / 1e9:.1f} GB")
        problems = verify(Path(path))
    except RecipeError as error:
        problems = [str(error)]
    if problems:
        return Check(name, "fail", problems[0], f"re-create {path} with `make {stage}`")
    return Check(name, "ok", f"{path}: {len(files)} files, all hashes match")
