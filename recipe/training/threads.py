"""The threads of a run on a CPU, beside programs that begin while it trains."""

import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from recipe.core.cpu import free_cores
from recipe.core.text import say

SLOW = 2.0  # times as long as the fastest pack so far: a pack after which the load is measured
PAUSE = 60.0  # seconds without another measurement after one that found the cores free


class FewerThreads(TrainerCallback):
    """Gives up the threads whose cores other programs have begun to keep busy (`core.cpu`), until the process ends.

    With fewer threads sums are added in another order, so the run's manifest names the earlier number. OMP_NUM_THREADS
    decides if it is set.
    """

    def __init__(self, count_tokens: Callable[[], int], end_part: Callable[[], None]) -> None:
        """count_tokens: those that the last pack computed; end_part: called before the number of threads changes."""
        self.count_tokens, self.end_part = count_tokens, end_part
        self.fastest, self.quiet_until = math.inf, -math.inf  # seconds a token; a moment

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        seconds = (now - self.began) / self.count_tokens()
        if seconds > SLOW * self.fastest and now > self.quiet_until:
            self.measure_load(state.global_step)
        self.fastest = min(self.fastest, seconds)
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_substep_end(args, state, control)

    def measure_load(self, step: int) -> None:
        """Use no more threads than cores are free. Takes half a second."""
        threads = torch.get_num_threads()
        if threads == 1 or "OMP_NUM_THREADS" in os.environ:
            return
        free, usable = free_cores()
        if free >= threads:
            self.quiet_until = time.monotonic() + PAUSE
            return
        self.end_part()
        torch.set_num_threads(free)
        self.fastest = math.inf
        say(
            f"since step {step} other programs keep {usable - free} of {usable} cores busy: using {free} "
            f"thread{'s' * (free > 1)} instead of {threads} from now on (OMP_NUM_THREADS={threads}: keep them)"
        )
