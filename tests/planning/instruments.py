"""Memory of real work, measured: by the allocator, and by what autograd keeps."""

from collections.abc import Callable

import torch


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory that `work` had beyond what was there before, as the device's own allocator counts it.

    On a CPU by torch's profiler, which sees every allocation and release, inside operators and in backward too.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def kept_bytes(work: Callable[[], torch.Tensor], frozen: torch.nn.Module) -> int:
    """What autograd keeps between `work`, a forward pass, and its backward: each storage once, no parameter or buffer.

    The loss is returned by `work` so that the graph, and with it every storage's address, lives while it is counted.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*frozen.parameters(), *frozen.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = work()
    total = sum(size for address, size in kept.items() if address not in own)
    del loss
    return total
