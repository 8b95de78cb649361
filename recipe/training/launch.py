"""How the process was launched: alone, or as one of several by torchrun. Imports no torch.

Environment variables of launchers must not change a run behind its config, so they are removed.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from recipe.core.cli import entry
from recipe.core.errors import UsageError
from recipe.core.text import mute, say, snippet

# accelerate's settings override those of a run: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 makes another adapter
PREFIXES = ("ACCELERATE_", "FSDP_")
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# accelerate takes these for a launch by MPI
OTHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_of_several = False  # whether this process is one of several


@dataclass(frozen=True)
class Launch:
    """The place of this process among all of the run, and among those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def check_steps(self, accumulation: int) -> None:
        """Raises UsageError if the packs of an optimizer step cannot be dealt out evenly."""
        if accumulation % self.size:
            fewer = max(size for size in range(1, self.size) if accumulation % size == 0)
            raise UsageError(
                f"train.gradient_accumulation_steps is {accumulation}, expected a multiple of the {self.size} "
                f"processes, which share the packs of each step; start {fewer}, as by make train GPUS={fewer}"
            )

    def check_split(self, split: int) -> None:
        """Raises UsageError if several processes were started for a base whose layers one process spreads over GPUs."""
        if split > 1 and self.size > 1:
            raise UsageError(
                f"base.split is {split} and {self.size} processes were started, expected one process, which sees all "
                "GPUs: run make train without GPUS, or set base.split = 1"
            )


def read_launch(environment: MutableMapping[str, str] = os.environ) -> Launch:
    """This process's place. Removes the variables of launchers and says which of them have no effect.

    One of several processes sees one GPU, talks over the loopback interface if all are on this machine, and only the
    first one says anything but errors. Raises UsageError if the variables are not those of torchrun.
    """
    global _of_several
    launch = _read_place(environment)
    _of_several = launch.size > 1
    removed = [name for name in environment if name.startswith(PREFIXES) or name in (*OTHERS, *PLACE)]
    for name in removed:
        del environment[name]
    if launch.size > 1:
        removed = [name for name in removed if name not in PLACE]
        _prepare(launch, environment)
    if removed:
        say(f"ignoring {', '.join(map(snippet, sorted(removed)))}: the config decides")
    return launch


def _read_place(environment: MutableMapping[str, str]) -> Launch:
    if environment.get("WORLD_SIZE", "1") == "1":
        return Launch()
    try:
        launch = Launch(*(int(environment[name]) for name in PLACE))
        whole = 0 <= launch.rank < launch.size and 0 <= launch.local_rank < launch.local_size <= launch.size
    except (KeyError, ValueError):
        whole = False
    if not whole or not all(environment.get(name) for name in ADDRESS):
        found = ", ".join(f"{name}={snippet(environment.get(name, ''), 20)}" for name in (*PLACE, *ADDRESS))
        raise UsageError(f"found {found}, expected what torchrun sets: start several processes by make train GPUS=2")
    return launch


def _prepare(launch: Launch, environment: MutableMapping[str, str]) -> None:
    if launch.rank:
        mute(f"rank {launch.rank}")
    if visible := environment.get("CUDA_VISIBLE_DEVICES", ""):
        devices = visible.split(",")
        if launch.local_rank >= len(devices):
            raise UsageError(
                f"found {launch.local_size} processes on a machine whose CUDA_VISIBLE_DEVICES names "
                f"{len(devices)} GPUs, expected one GPU for each; start fewer, or name more GPUs"
            )
        environment["CUDA_VISIBLE_DEVICES"] = devices[launch.local_rank]
    elif "CUDA_VISIBLE_DEVICES" not in environment:
        environment["CUDA_VISIBLE_DEVICES"] = str(launch.local_rank)
    # peer-to-peer copies hang on machines with PCIe access control (NVIDIA/nccl#631), and 17 MB a step need none
    environment.setdefault("NCCL_P2P_DISABLE", "1")
    if launch.local_size == launch.size:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, "lo")


def exit_with(main: Callable[[], int]) -> None:
    """Run `main` as `entry` does and end the process with its exit code.

    One of several ends at once: as Python closes the connections of gloo (torch 2.0.1), it may block for ever.
    """
    try:
        code = entry(main)
    except Exception:
        if not _of_several:
            raise
        traceback.print_exc()
        code = 1
    if not _of_several:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
