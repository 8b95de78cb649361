"""What the driver says of the card, through NVML, and whether this recipe can use it. No text of a tool is scraped."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from recipe.core.text import printable, snippet
from recipe.environment.locks import Drivers

MIB = 1 << 20
P100 = (6, 0)


@dataclass(frozen=True)
class Check:
    """One line of the doctor: `verdict` is ok, warn or fail; `hint` says what to do, and is empty when all is well."""

    name: str
    verdict: str
    found: str
    hint: str = ""


@dataclass(frozen=True)
class Card:
    """A card as NVML sees it; memory in bytes, `others` pairs of process id and bytes (None: not told)."""

    driver: str
    name: str
    capability: tuple[int, int]
    total: int
    free: int
    others: tuple[tuple[int, int | None], ...]


def look() -> Card | Check:
    """The first visible card; or, where there is no driver, no NVML or no card, the line that says so."""
    try:
        import pynvml
    except ImportError:
        return Check("driver", "fail", "not asked: nvidia-ml-py is not installed", "`make setup`, or the image")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Check("driver", "fail", "no NVML: libnvidia-ml.so.1 is not there", NO_NVML)
    except pynvml.NVMLError as error:
        return Check("driver", "fail", f"NVML does not start: {snippet(error)}", NO_DRIVER)
    try:
        return _read(pynvml)
    except pynvml.NVMLError as error:
        return Check("card", "fail", f"NVML names no card: {snippet(error)}", NO_CARD)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


NO_NVML = (
    "install the NVIDIA driver with its utility libraries; inside a container start it with --gpus all and "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
)
NO_DRIVER = "load the driver (modprobe nvidia) or reinstall it"
NO_CARD = "check CUDA_VISIBLE_DEVICES, and that the machine or container was given a card"


def _read(nvml: Any) -> Card:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.startswith(("GPU-", "MIG-")):
        handle = nvml.nvmlDeviceGetHandleByUUID(visible)
    else:  # empty or -1 hides every card: an index that no card has is NVML's own error
        handle = nvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdecimal() else nvml.nvmlDeviceGetCount())
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    processes = []
    with contextlib.suppress(nvml.NVMLError_NotSupported):  # as on some virtual cards
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return Card(
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        total=memory.total,
        free=memory.free,
        others=tuple((process.pid, process.usedGpuMemory) for process in processes if process.pid != os.getpid()),
    )


def _text(value: str | bytes) -> str:
    return printable(value.decode(errors="replace") if isinstance(value, bytes) else value)


def driver(version: str, drivers: Drivers) -> Check:
    """Old enough to know Pascal, new enough for CUDA 11."""
    found = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if not found:
        return Check("driver", "warn", f"version {version!r}, which is no number", "read it with nvidia-smi")
    if found < tuple(map(int, drivers.minimum.split("."))):
        return Check("driver", "fail", f"{version}, too old for CUDA 11", f"install {drivers.minimum} or later")
    if found[0] > drivers.last_branch:
        hint = f"install branch {drivers.last_branch} or earlier: it is the last that drives a P100"
        return Check("driver", "fail", f"{version}, which has no code for Pascal cards", hint)
    return Check("driver", "ok", version)


def has_code(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether code for one of them, as torch names them (sm_60), runs on the card: same major, minor not above its."""
    major, minor = capability
    numbers = [int(name.removeprefix("sm_")) for name in architectures if name.startswith("sm_")]
    return any(number // 10 == major and number % 10 <= minor for number in numbers)


def kind(card: Card, architectures: list[str]) -> Check:
    """A P100, or another card that torch's code runs on."""
    found = f"{card.name}, compute capability {card.capability[0]}.{card.capability[1]}"
    if card.capability == P100:
        return Check("card", "ok", found)
    if architectures and not has_code(card.capability, architectures):
        known = " ".join(architectures)
        return Check("card", "fail", f"{found}; torch has code for {known}", "use a Tesla P100, or a card of those")
    return Check("card", "warn", f"{found}, not a P100", "it may run; every number of this recipe is for sm_60")


def memory(card: Card, needed: int | None) -> Check:
    """Enough in all, enough now, and who holds the rest."""
    found = f"{card.free // MIB:,} of {card.total // MIB:,} MiB free"
    if needed is not None:
        found += f", the plan needs {needed // MIB:,}"
    holders = ", ".join(f"pid {pid} ({'?' if size is None else f'{size // MIB:,} MiB'})" for pid, size in card.others)
    if needed is not None and needed > card.total:
        return Check("memory", "fail", found, "`make plan` says what to change in the config")
    if needed is not None and needed > card.free:
        who = f"stop {holders}" if holders else "find what holds it: no process is listed, perhaps another container"
        return Check("memory", "fail", found, who)
    if holders:
        return Check("memory", "warn", f"{found}; also on the card: {holders}", "it takes time and memory from a run")
    return Check("memory", "ok", found)
