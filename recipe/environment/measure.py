"""What a device is and what it reaches: its name, the speed of a disk, int8, attention and matmuls."""

import dataclasses
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.errors import RecipeError, UnfitError
from recipe.core.text import snippet
from recipe.environment import gpu
from recipe.planning import cards
from recipe.planning.hardware import MIB

if TYPE_CHECKING:
    import torch


def device_name(device: "torch.device") -> str:
    """The GPU's name, or the CPU's with its number of threads."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' * (threads != 1)}"


def describe_device(device: "torch.device") -> dict[str, Any]:
    """The device without anything that names its owner."""
    import torch

    if device.type != "cuda":
        return {"name": device_name(device), "kind": "cpu", "load": round(os.getloadavg()[0], 1)}
    found, properties = gpu.query(), torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "kind": "cuda",
        "capability": [properties.major, properties.minor],
        "memory_mib": properties.total_memory // MIB,
        "driver": found.driver if isinstance(found, gpu.Gpu) else "",
        "cuda": torch.version.cuda,
    }


def known_card(device: "torch.device") -> cards.Card | None:
    """The card whose rates are known, if the device is one."""
    import torch

    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    return cards.find(found.name, found.total_memory // MIB)


def probe(device: "torch.device", shapes: Iterable[tuple[int, int]], tokens: int) -> dict[str, Any]:
    """Errors of int8 and attention, and the rate of the matmul of each (in, out) with `tokens` rows.

    Raises UnfitError if one does not run, RecipeError if it is wrong.
    """
    from recipe.pascal import probe as probes
    from recipe.pascal.dtypes import compute_dtype

    dtype = compute_dtype(device)
    try:
        int8, attention = probes.int8(device, dtype), probes.attention(device, dtype)
        rates = [dataclasses.asdict(probes.matmul_rate(device, *pair, tokens)) for pair in sorted(set(shapes))]
    except RuntimeError as error:
        reason = snippet(str(error).partition("\n")[0])
        raise UnfitError(f"a probe does not run on {device} ({reason}): `make doctor` says what is missing") from None
    if not (int8.passed and attention.passed):
        raise RecipeError(
            f"int8 has an error of {int8.error:.1e} and attention of {attention.error:.1e}, expected at most "
            f"{probes.TOLERANCE[dtype]:.0e}: a run would end in NaN or nonsense here; use another GPU or driver"
        )
    errors = {"int8_error": int8.error, "attention_error": attention.error, "tolerance": probes.TOLERANCE[dtype]}
    return {**errors, "matmul": rates}


def disk_speed(folder: Path, size: int) -> dict[str, float]:
    """MB/s of `size` bytes written to `folder`, with fsync, and read back past the cache."""
    block, path = os.urandom(1 << 20), folder / "disk"
    start = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    read = time.perf_counter() - start
    path.unlink()
    return {"write_mb_s": round(size / 1e6 / written, 1), "read_mb_s": round(size / 1e6 / read, 1)}
