"""Checks of the device that would train: the GPU, or the CPU if there is none, and short probes on it."""

import dataclasses
from collections.abc import Iterator

from recipe.core.config import Config
from recipe.core.text import snippet
from recipe.environment import gpu, locks
from recipe.environment.checks import Check
from recipe.environment.gpu import Gpu
from recipe.pascal.constants import computes_in_fp16
from recipe.planning import sizing
from recipe.planning.hardware import CONTEXT_MIB, MARGIN_MIB, MIB
from recipe.planning.memory import Shape


def check_device(config: Config | None, shape: Shape | None) -> Iterator[Check]:
    """The GPU as NVML or, failing that, torch reports it; the CPU if there is none."""
    import torch

    visible = torch.cuda.is_available()
    found = gpu.query((torch.cuda.get_device_name(), torch.cuda.get_device_capability()) if visible else None)
    if isinstance(found, Gpu):
        yield gpu.check_driver(found.driver, locks.read_drivers(locks.DOCKER / "pins.toml"))
        yield from check_gpu(found, config, shape)
        if not visible:
            hint = "check CUDA_VISIBLE_DEVICES and, in a container, --gpus all with NVIDIA_DRIVER_CAPABILITIES=compute"
            yield Check("torch sees", "fail", "no GPU, though the driver reports one", hint)
    elif visible:
        yield dataclasses.replace(found, verdict="warn", found=f"{found.found}, though torch sees a GPU")
        free, total = torch.cuda.mem_get_info()
        known = Gpu("", torch.cuda.get_device_name(), torch.cuda.get_device_capability(), total, free, ())
        yield from check_gpu(known, config, shape)
    elif config and shape and not sizing.explain_no_cpu(config, shape):
        yield dataclasses.replace(found, verdict="warn", hint="")
        yield Check("device", "warn", f"a CPU, enough for {config.name}", "nothing to do; a GPU is faster")
    else:
        yield found
        name = config.name if config else "a real run"
        yield Check("device", "fail", f"a CPU, and {name} needs a GPU", "rent or install a 16 GB Tesla P100")


def check_gpu(found: Gpu, config: Config | None, shape: Shape | None) -> Iterator[Check]:
    """The model of the GPU, and its memory against the memory plan."""
    import torch

    yield gpu.check_model(found, torch.cuda.get_arch_list())
    needed = None
    if config and shape:
        budget = found.free - (CONTEXT_MIB + MARGIN_MIB) * MIB
        plan = sizing.plan_shape(config, shape, budget, half=computes_in_fp16(found.capability))
        needed = plan.estimate.peak + CONTEXT_MIB * MIB
    yield gpu.check_memory(found, needed)
    if config and config.base.split > 1:
        count, wanted = torch.cuda.device_count(), config.base.split
        hint = "" if count >= wanted else "add GPUs, or lower base.split and look at `make plan`"
        yield Check("gpus", "fail" if hint else "ok", f"{count} visible, base.split needs {wanted}", hint)


def run_probes() -> Iterator[Check]:
    """int8 matmul and attention, forward and backward, on the device that would train."""
    import torch

    from recipe.pascal import probe
    from recipe.pascal.dtypes import compute_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(device)
    for name, work in (("int8 probe", probe.int8), ("attention probe", probe.attention)):
        try:
            result = work(device, dtype)
        except RuntimeError as error:
            hint = "`make pins` says whether a library lacks code for this GPU"
            yield Check(name, "fail", f"does not run on {device}: {_first_line(error)}", hint)
            continue
        found = f"error {result.error:.1e} against fp32 on {device} in {str(dtype).removeprefix('torch.')}"
        if result.passed:
            yield Check(name, "ok", found)
        else:
            found = found if result.finite else f"inf or NaN on {device}"
            yield Check(name, "fail", found, "use another GPU or driver: a run would end in NaN or nonsense")


def check_accumulation(config: Config, shape: Shape) -> Check:
    """fp16 against fp32 accumulation at the run's own layer shapes: the choice that `train` would make."""
    import torch

    from recipe.pascal import probe

    name = "fp16 accumulation"
    if not torch.cuda.is_available():
        return Check(name, "warn", "not measured: there is no GPU", "set train.matmul_accumulation = fp32")
    if not computes_in_fp16(torch.cuda.get_device_capability()):
        found = "not measured: this GPU computes in fp32, as its fp16 arithmetic is slow"
        return Check(name, "warn", found, "the run will accumulate in fp32")
    try:
        races = probe.benchmark_gemm(
            torch.device("cuda"), set(shape.linears().values()), config.train.micro_batch_tokens
        )
    except RuntimeError as error:
        return Check(name, "warn", f"does not run: {_first_line(error)}", "the run will accumulate in fp32")
    found = "; ".join(map(str, races))
    if any(race.fp16_wins for race in races):
        return Check(name, "ok", found)
    return Check(name, "warn", found, "nowhere both faster and accurate: the run will accumulate in fp32")


def _first_line(error: Exception) -> str:
    return snippet(str(error).partition("\n")[0])
