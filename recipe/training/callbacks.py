"""Progress and metrics of a run, as a Trainer callback."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from recipe.core.files import atomic_file
from recipe.core.run import Run
from recipe.core.text import progress
from recipe.training.tensorboard import EventFile


class Resume(TrainerCallback):
    """A run saves and validates as often as its settings say now, where Trainer resumes with those of the checkpoint.

    A validation that a stop cut off is made first.
    """

    def __init__(self, resume_validation: Callable[[], None]) -> None:
        self.resume_validation = resume_validation

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)
        self.resume_validation()


class Progress(TrainerCallback):
    """A bar with loss, tokens/s and remaining time; for each optimizer step and each validation one line of
    metrics.jsonl, and the same numbers for TensorBoard."""

    def __init__(
        self, count_tokens: Callable[[], int], status: Callable[[], Mapping[str, float]], run: Run, epochs: float
    ) -> None:
        """count_tokens: the tokens trained since this process began; status: more numbers for each line; epochs: of
        the whole run."""
        self.count_tokens, self.status, self.epochs = count_tokens, status, epochs
        self.run, self.metrics = run, run.metrics

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # an earlier process may have logged steps after the checkpoint that this one resumes from
        self.events: EventFile | None = None
        self._keep_rows(lambda row: row["step"] <= state.global_step)
        self.start = time.monotonic()
        self.bar = progress(total=state.max_steps, initial=state.global_step, desc="train", unit=" steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" not in logs and "eval_loss" not in logs:
            return  # the summary that Trainer logs at the end
        speed = self.count_tokens() / max(time.monotonic() - self.start, 1e-9)
        epoch = round(self.epochs * state.global_step / state.max_steps, 4)
        row = {**logs, "step": state.global_step, "epoch": epoch, "tokens_per_second": round(speed, 1), **self.status()}
        # JSON knows no inf: the gradient norm of a skipped fp16 step
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}
        if "eval_loss" in logs:  # a process killed after this line validates the same step again
            self._keep_rows(lambda earlier: "eval_loss" not in earlier or earlier["step"] != row["step"])
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a run that resumes does not log the steps before its checkpoint again
        if self.events:
            self.events.add(row)
        if "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, {speed:.0f} tokens/s", refresh=False)
            self.bar.update(state.global_step - self.bar.n)
        else:
            self.bar.write(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}", file=self.bar.fp)

    def _keep_rows(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        if keep_rows(self.metrics, keep) or not self.events:
            self.events = EventFile(self.run.events, read_rows(self.metrics))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has allocated on a GPU (the fullest), or that the process has had in main memory."""
    if device.type == "cuda":
        return max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def read_rows(metrics: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []


def keep_rows(metrics: Path, keep: Callable[[dict[str, Any]], bool]) -> bool:
    """Keep the rows of metrics.jsonl for which `keep` is true; whether it was rewritten.

    A line cut off by a power failure goes.
    """
    if not metrics.is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _keeps(line, keep)]
    if kept != lines:
        with atomic_file(metrics) as file:
            file.writelines(f"{line}\n" for line in kept)
    return kept != lines


def _keeps(line: str, keep: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return keep(json.loads(line))
    except (json.JSONDecodeError, KeyError, TypeError):
        return False
