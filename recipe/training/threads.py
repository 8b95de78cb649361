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

SLOW = 2.0  # times the fastest pack of the run: then it looks at what other programs do


class FewerThreads(TrainerCallback):
    """Gives up the threads whose cores other programs have begun to keep busy (`core.cpu`), for the rest of the run.

    With fewer threads sums are added in another order, so the run's manifest names the earlier number. OMP_NUM_THREADS
    decides if it is set.
    """

    def __init__(self, count_tokens: Callable[[], int], give_up: Callable[[], None]) -> None:
        """count_tokens: those of the last pack; give_up: called before the number of threads changes."""
        self.count_tokens, self.give_up = count_tokens, give_up
        self.fastest = math.inf  # seconds a token

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = (time.monotonic() - self.began) / self.count_tokens()
        if seconds > SLOW * self.fastest:
            self.look(state.global_step)
        self.fastest = min(self.fastest, seconds)
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_substep_end(args, state, control)

    def look(self, step: int) -> None:
        """Use as many threads as cores are free. Takes half a second."""
        threads = torch.get_num_threads()
        if threads == 1 or "OMP_NUM_THREADS" in os.environ:
            return
        free, _ = free_cores()
        if free < threads:
            self.give_up()
            torch.set_num_threads(free)
            self.fastest = math.inf
            say(
                f"other programs keep {threads - free} of {threads} cores busy since step {step}: using {free} "
                f"thread{'s' * (free > 1)} from now on (OMP_NUM_THREADS={threads}: use all)"
            )
