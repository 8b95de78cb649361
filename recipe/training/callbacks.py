"""Trainer callbacks: progress and metrics, a stop with a checkpoint."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from recipe.core.files import atomic_file
from recipe.core.text import progress
from recipe.training.signals import StopRequest


class Progress(TrainerCallback):
    """A bar with loss, tokens/s and remaining time; one line of metrics.jsonl per optimizer step and per validation."""

    def __init__(self, count_tokens: Callable[[], int], metrics: Path, epochs: float) -> None:
        """count_tokens: the tokens trained since this process began; epochs: of the whole run."""
        self.count_tokens, self.metrics, self.epochs = count_tokens, metrics, epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # an earlier process may have logged steps after the checkpoint that this one resumes from
        keep_rows(self.metrics, lambda row: row["step"] <= state.global_step)
        self.start = time.monotonic()
        self.bar = progress(total=state.max_steps, initial=state.global_step, desc="train", unit=" steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" not in logs and "eval_loss" not in logs:
            return  # the summary that Trainer logs at the end
        speed = self.count_tokens() / max(time.monotonic() - self.start, 1e-9)
        epoch = round(self.epochs * state.global_step / state.max_steps, 4)
        row = {**logs, "step": state.global_step, "epoch": epoch, "tokens_per_second": round(speed, 1)}
        if "eval_loss" in logs:  # a process killed after this line validates the same step again
            keep_rows(self.metrics, lambda earlier: "eval_loss" not in earlier or earlier["step"] != row["step"])
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a run that resumes does not log the steps before its checkpoint again
        if "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, {speed:.0f} tokens/s", refresh=False)
            self.bar.update(state.global_step - self.bar.n)
        else:
            self.bar.write(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}", file=self.bar.fp)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def keep_rows(metrics: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite metrics.jsonl with the rows for which `keep` is true. A line cut off by a power failure goes."""
    if not metrics.is_file():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _keeps(line, keep)]
    if kept != lines:
        with atomic_file(metrics) as file:
            file.writelines(f"{line}\n" for line in kept)


def _keeps(line: str, keep: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return keep(json.loads(line))
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


class SaveAndStop(TrainerCallback):
    """On a stop request: finish the optimizer step, save, stop."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.reason:
            control.should_save = control.should_training_stop = True
