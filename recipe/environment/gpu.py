"""The GPU as the driver reports it through NVML, and whether this recipe can use it."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from recipe.core.text import printable, snippet
from recipe.environment.checks import Check
from recipe.environment.locks import Drivers
from recipe.planning.hardware import MIB, P100_CAPABILITY


@dataclass(frozen=True)
class Gpu:
    """A GPU; memory in bytes; `others`: (process id, bytes or None if unknown) of other processes on it."""

    driver: str
    name: str
    capability: tuple[int, int]
    total: int
    free: int
    others: tuple[tuple[int, int | None], ...]


def query(wanted: tuple[str, tuple[int, int]] | None = None) -> Gpu | Check:
    """The first visible GPU; a failed check if there is no driver, no NVML or no GPU.

    wanted: (name, capability) of the GPU that torch uses. NVML counts GPUs by their slots, CUDA the fastest first.
    """
    try:
        import pynvml
    except ImportError:
        return Check("driver", "fail", "unknown: nvidia-ml-py is not installed", "run `make setup`, or use the image")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Check("driver", "fail", "no NVML: libnvidia-ml.so.1 was not found", NO_NVML)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
        return Check("driver", "fail", f"NVML does not start: {snippet(error)}", NO_DRIVER)
    try:
        return _read(pynvml, _find(pynvml, wanted))
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
        return Check("gpu", "fail", f"NVML reports no GPU: {snippet(error)}", NO_CARD)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


NO_NVML = (
    "install the NVIDIA driver with its utility libraries; inside a container start it with --gpus all and "
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
)
NO_DRIVER = "load the driver (modprobe nvidia) or reinstall it"
NO_CARD = "check CUDA_VISIBLE_DEVICES, and that the machine or container has a GPU"


def _find(nvml: Any, wanted: tuple[str, tuple[int, int]] | None) -> Any:
    """NVML's handle of the first visible GPU, or of one that is as `wanted`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(visible)
    # empty or -1 hides every GPU: an index out of range is an error of NVML
    count = nvml.nvmlDeviceGetCount()
    first = nvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdecimal() else count)
    if wanted is None or _kind(nvml, first) == wanted:
        return first
    others = map(nvml.nvmlDeviceGetHandleByIndex, range(count))
    return next((handle for handle in others if _kind(nvml, handle) == wanted), first)


def _kind(nvml: Any, handle: Any) -> tuple[str, tuple[int, int]]:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return _text(nvml.nvmlDeviceGetName(handle)), (major, minor)


def _read(nvml: Any, handle: Any) -> Gpu:
    name, capability = _kind(nvml, handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    processes = []
    # some virtual GPUs have no list, and older drivers not the function that this version of the library calls
    with contextlib.suppress(nvml.NVMLError, nvml.NVMLLibraryMismatchError):
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return Gpu(
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        name=name,
        capability=capability,
        total=memory.total,
        free=memory.free,
        others=tuple((process.pid, process.usedGpuMemory) for process in processes if process.pid != os.getpid()),
    )


def _text(value: str | bytes) -> str:
    return printable(value.decode(errors="replace") if isinstance(value, bytes) else value)


def check_driver(version: str, drivers: Drivers) -> Check:
    """The driver supports CUDA 11 and still supports Pascal (branches 450 to 580)."""
    found = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if not found:
        return Check("driver", "warn", f"version {version!r} is not a number", "read it with nvidia-smi")
    if found < tuple(map(int, drivers.minimum.split("."))):
        return Check("driver", "fail", f"{version}, too old for CUDA 11", f"install {drivers.minimum} or later")
    if found[0] > drivers.last_branch:
        hint = f"install branch {drivers.last_branch} or earlier: the last that supports a P100"
        return Check("driver", "fail", f"{version}, which does not support Pascal GPUs", hint)
    return Check("driver", "ok", version)


def has_code(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether code for one of these architectures (sm_60) runs on the GPU: same major version, no higher minor."""
    major, minor = capability
    numbers = [int(name.removeprefix("sm_")) for name in architectures if name.startswith("sm_")]
    return any(number // 10 == major and number % 10 <= minor for number in numbers)


def check_model(device: Gpu, architectures: list[str]) -> Check:
    """A P100, or another GPU that torch has code for."""
    found = f"{device.name}, compute capability {device.capability[0]}.{device.capability[1]}"
    if device.capability == P100_CAPABILITY:
        return Check("gpu", "ok", found)
    if architectures and not has_code(device.capability, architectures):
        known = " ".join(architectures)
        return Check("gpu", "fail", f"{found}; torch has code for {known}", "use a Tesla P100, or one of those GPUs")
    return Check("gpu", "warn", f"{found}, not a P100", "it may run; all numbers of this recipe are for sm_60")


def check_memory(device: Gpu, needed: int | None) -> Check:
    """Enough memory in total and free now, and which processes hold the rest."""
    found = f"{device.free // MIB:,} of {device.total // MIB:,} MiB free"
    if needed is not None:
        found += f", the plan needs {needed // MIB:,}"
    holders = ", ".join(f"pid {pid} ({'?' if size is None else f'{size // MIB:,} MiB'})" for pid, size in device.others)
    if needed is not None and needed > device.total:
        return Check("memory", "fail", found, "`make plan` says what to change in the config")
    if needed is not None and needed > device.free:
        who = f"stop {holders}" if holders else "no process is listed: look in other containers"
        return Check("memory", "fail", found, who)
    if holders:
        return Check("memory", "warn", f"{found}; also on the GPU: {holders}", "it takes time and memory from the run")
    return Check("memory", "ok", found)
