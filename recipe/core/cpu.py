"""The CPU cores that are free for this process: those it may use, less those that other programs keep busy.

OpenMP's threads wait for each other after every operation of a model, thousands of times a step. A thread that shares
its core with another program holds up all others, so that one busy core can make a step ten times as slow.
"""

import os
import time
from pathlib import Path

STAT, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")
SECONDS = 0.5  # that the load is measured
BUSY = 0.75  # share of its time from which a core counts as busy


def free_cores() -> tuple[int, int]:
    """(cores that are free, at least 1; cores that this process may use). Takes half a second."""
    cores = sorted(os.sched_getaffinity(0))
    before = _busy_seconds(cores)
    time.sleep(SECONDS)
    busy = int((_busy_seconds(cores) - before) / SECONDS + 1 - BUSY)
    usable = max(1, int(min(len(cores), _quota(QUOTA))))
    spare = len(cores) - usable  # beyond a container's limit: other programs may as well use these
    return max(1, usable - max(0, busy - spare)), usable


def _busy_seconds(cores: list[int]) -> float:
    """Seconds that these cores have worked since the machine started, this process included."""
    total = 0
    for line in STAT.read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name.removeprefix("cpu") in map(str, cores) and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, ticks)
            total += user + nice + system + irq + softirq
    return total / os.sysconf("SC_CLK_TCK")


def _quota(file: Path) -> float:
    """Cores' worth of time that a container may use; infinite without a limit."""
    try:
        limit, period = file.read_text(encoding="ascii").split()
        return float("inf") if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return float("inf")
