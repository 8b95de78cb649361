"""Stop requests: SIGINT (Ctrl-C), SIGTERM, SIGHUP and train.max_minutes end a run with a checkpoint.

Imports no torch, so that a signal while torch loads is handled too.
"""

import math
import signal
import time
from typing import Any

from recipe.core.text import say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """A context in which the signals do not kill the process.

    Before and after the training loop a signal raises KeyboardInterrupt. In the loop, while `saving` is true, it only
    sets `reason`, and the loop saves a checkpoint and stops. A second Ctrl-C or SIGTERM has its usual effect.
    """

    def __init__(self, max_minutes: float = 0.0, launched: bool = False) -> None:
        """max_minutes: also request a stop after this time; 0: no limit. launched: by torchrun, which repeats the
        signal that it got: a second one has no effect."""
        self.launched = launched
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        self.saving = False
        self._signal = ""

    @property
    def reason(self) -> str:
        """What requested the stop: a signal's name or train.max_minutes; empty without a request."""
        return self._signal or ("train.max_minutes" if time.monotonic() >= self.deadline else "")

    @property
    def signaled(self) -> bool:
        return bool(self._signal)

    def raise_if_signaled(self) -> None:
        """Raises KeyboardInterrupt after a signal whose exception was swallowed, as by an import of a C library."""
        if self._signal:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopRequest":
        # nohup ignores SIGHUP: it stays ignored
        wanted = [number for number in SIGNALS if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)]
        self._previous = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        name = signal.Signals(number)
        self._signal = name.name
        # a terminal that closes can send SIGHUP twice, and the second one must not kill the save
        signal.signal(number, signal.SIG_IGN if self.launched or name is signal.SIGHUP else self._previous[name])
        if not self.saving:
            raise KeyboardInterrupt
        say(f"\n{name.name}: saving the last finished step; press Ctrl-C again to stop immediately")
