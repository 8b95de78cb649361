"""Trainer callbacks: progress and metrics, a stop that saves."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from recipe.core.files import atomic_file
from recipe.core.text import progress, say


class Progress(TrainerCallback):
    """A bar with loss, tokens/s and time left; one line of metrics.jsonl per optimizer step."""

    def __init__(self, trainer: Any, metrics: Path, epochs: float) -> None:
        self.trainer, self.metrics, self.epochs = trainer, metrics, epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        keep_until(self.metrics, state.global_step)
        self.start = time.monotonic()
        self.bar = progress(total=state.max_steps, initial=state.global_step, desc="train", unit=" steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" not in logs and "eval_loss" not in logs:
            return  # Trainer's closing summary
        speed = self.trainer.tokens / max(time.monotonic() - self.start, 1e-9)
        epoch = round(self.epochs * state.global_step / state.max_steps, 4)
        row = {**logs, "step": state.global_step, "epoch": epoch, "tokens_per_second": round(speed, 1)}
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        if "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, {speed:.0f} tokens/s", refresh=False)
            self.bar.update(state.global_step - self.bar.n)
        else:
            self.bar.write(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}", file=self.bar.fp)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def keep_until(metrics: Path, step: int) -> None:
    """Drop what an earlier process logged after the checkpoint that this one goes on from."""
    if not metrics.is_file():
        return
    rows = [line for line in metrics.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
    with atomic_file(metrics) as file:
        file.writelines(f"{row}\n" for row in rows)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # a line cut off by a power failure


class Interruption(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the optimizer step, save, stop. A second Ctrl-C stops at once."""

    asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the two signals inside the block; outside they mean what they meant before."""

        def ask(number: int, frame: Any) -> None:
            self.asked = True
            signal.signal(number, previous[signal.Signals(number)])
            say("\nstopping after this step and saving; once more to stop at once")

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
