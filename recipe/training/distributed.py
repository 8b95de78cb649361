"""Data parallelism: every process is a whole single-process run on one device, and they share the packs of a step.

The global batch is the config's, so a run has the same id, packs and losses with any number of processes. Process r of
W computes packs r, r + W, r + 2W, ... of each step; before gradients are unscaled and clipped, one all-reduce sums the
gradients of the adapter, which are a few megabytes. No wrapper class such as DistributedDataParallel is used: the loss
does not call the wrapper's forward, so it would synchronize nothing.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from recipe.core.errors import RecipeError
from recipe.core.text import say, snippet
from recipe.training.launch import Launch

# For the slowest part that others wait for: loading, a benchmark, a step that is repeated. A process that ends closes
# its connections, which the others notice at once; only a machine that vanishes is noticed after this time.
TIMEOUT = datetime.timedelta(minutes=10)


class Ranks:
    """What the processes of a run tell each other; one process alone tells nobody. CPU tensors go by gloo, over TCP;
    GPU tensors by NCCL.

    Each method must be called by all of them in the same order. Raises RecipeError if another process has ended.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        """launch: None for one process alone, else the processes must have joined (`join`)."""
        self.launch = launch or Launch()
        self.rank, self.size = self.launch.rank, self.launch.size
        self._nccl: Any = None

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place; the same bits in each of them."""
        if self.size > 1:
            if tensor.is_cuda and self._nccl is None:
                self._nccl = dist.new_group(backend="nccl", timeout=TIMEOUT)
            with _lost_peer():
                dist.all_reduce(tensor, group=self._nccl if tensor.is_cuda else None)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        if self.size == 1:
            return [text]
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _lost_peer():
            dist.all_gather(lengths, torch.tensor([len(content)]))
            longest = max(1, *(int(length) for length in lengths))  # gloo divides by the size
            padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(padded, torch.nn.functional.pad(content, (0, longest - len(content))))
        return [bytes(each[: int(n)].tolist()).decode() for each, n in zip(padded, lengths, strict=True)]

    def share(self, text: str) -> str:
        """The text of the first process."""
        return self.gather(text)[0]

    def check_equal(self, facts: Mapping[str, str], remedy: str) -> None:
        """Raises RecipeError in every process if a fact is not the same in all of them; says which differs where."""
        all_facts = [json.loads(each) for each in self.gather(json.dumps(facts))]
        for rank, other in enumerate(all_facts):
            if names := [name for name in facts if other[name] != all_facts[0][name]]:
                raise RecipeError(
                    f"rank {rank} of {self.size} differs from rank 0 in {' and '.join(names)}, expected the same in "
                    f"all processes of a run: {remedy}"
                )

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """A block that the first process runs before the others, as it leaves a file that they read."""
        if self.rank:
            self.any(False)
        yield
        if not self.rank:
            self.any(False)


@contextlib.contextmanager
def join(launch: Launch) -> Iterator[Ranks]:
    """The processes of the run, connected while the block runs. Raises RecipeError if they do not come together."""
    if launch.size == 1:
        yield Ranks()
        return
    try:
        dist.init_process_group("gloo", "env://", TIMEOUT, rank=launch.rank, world_size=launch.size)
    except (RuntimeError, ValueError) as error:
        reason = snippet(str(error).partition("\n")[0], 200)
        raise RecipeError(
            f"not all {launch.size} processes of the run came together ({reason}): check that all of them were "
            "started, with the same address and a port that nothing else uses"
        ) from None
    say(f"{launch.size} processes share the packs of each step, {launch.local_size} of them on this machine")
    if torch.cuda.is_available():
        say(
            f"NCCL_P2P_DISABLE={os.environ.get('NCCL_P2P_DISABLE')}: peer-to-peer copies hang on some machines and are "
            "not needed here; set it to 0 to try them"
        )
    yield Ranks(launch)  # the group is never destroyed: gloo of torch 2.0.1 may block while it closes connections


@contextlib.contextmanager
def _lost_peer() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = snippet(str(error).rpartition("] ")[2].partition("\n")[0], 100)
        raise RecipeError(
            f"the connection to another process of this run is lost ({reason}): it ended, and its own message says "
            "why; run the same command again to resume from the last checkpoint"
        ) from None
