"""A few real optimizer steps on a random base, measured: memory, seconds, save, validation and resume."""

import dataclasses
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from recipe.core.config import Train
from recipe.core.run import Run
from recipe.training.dataset import PackedDataset
from recipe.training.resume import list_checkpoints
from recipe.training.trainer import LoraTrainer, build_trainer

if TYPE_CHECKING:
    from peft import PeftModel

STEPS = 6  # one warms up, one is measured for memory, the others for time; the middle one is saved and resumed
PACKS_PER_STEP = 2  # accumulation is real, and a step on a P100 stays below half a minute
MEASURED_STEP = 2  # the first with optimizer state


@dataclass(frozen=True)
class Rehearsed:
    """What the steps measured; memory in bytes. `reserved` by torch's allocator on a GPU, else None."""

    peak: int
    reserved: int | None
    step_seconds: list[float]
    tokens_per_step: int
    save_seconds: float
    evaluate_seconds: float
    losses: list[float]
    resumed_loss: float  # of the step after the saved one, computed again from the checkpoint
    loader_tokens_per_second: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / statistics.median(self.step_seconds)


def rehearse(model: "PeftModel", settings: Train, max_length: int, vocabulary: int, run: Run) -> Rehearsed:
    """Train `STEPS` steps on full packs of random tokens, then resume from the middle for one step.

    The model is prepared for training. `run` is a scratch folder.
    """
    half = STEPS // 2
    settings = dataclasses.replace(
        settings,
        epochs=1.0,
        gradient_accumulation_steps=min(PACKS_PER_STEP, settings.gradient_accumulation_steps),
        eval_steps=half,
        save_steps=half,
        keep_checkpoints=STEPS,
    )
    per_step = settings.gradient_accumulation_steps
    data = random_packs(settings, max_length, vocabulary, STEPS * per_step)
    validation = random_packs(settings, max_length, vocabulary, 1)
    run.folder.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(model, settings, run, data, validation)
    meter = Meter(trainer)
    trainer.add_callback(meter)
    trainer.train()
    start = time.perf_counter()
    trainer.evaluate()
    seconds = time.perf_counter() - start
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    peak, reserved = meter.memory()
    return Rehearsed(
        peak=peak,
        reserved=reserved,
        step_seconds=meter.seconds[MEASURED_STEP:],
        tokens_per_step=settings.micro_batch_tokens * per_step,
        save_seconds=statistics.median(meter.save_seconds),
        evaluate_seconds=seconds,
        losses=losses,
        resumed_loss=resume(model, settings, run, data, validation, half),
        loader_tokens_per_second=loader_speed(trainer),
    )


def resume(
    model: "PeftModel", settings: Train, run: Run, data: PackedDataset, validation: PackedDataset, step: int
) -> float:
    """The loss of the step after the checkpoint of `step`, computed from that checkpoint by a fresh Trainer."""
    (checkpoint,) = (path for path in list_checkpoints(run.checkpoints) if path.name == f"checkpoint-{step}")
    trainer = build_trainer(model, settings, run, data, validation)
    trainer.add_callback(StopAfterOne())
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return next(row["loss"] for row in trainer.state.log_history if "loss" in row and row["step"] == step + 1)


def random_packs(settings: Train, max_length: int, vocabulary: int, count: int) -> PackedDataset:
    """`count` full packs of conversations of `max_length` random tokens, with a loss at every token."""
    import numpy as np
    from datasets import Dataset

    whole, rest = divmod(settings.micro_batch_tokens, max_length)
    lengths = ([max_length] * whole + [rest] * (rest > 0)) * count
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, vocabulary, length, dtype=np.int32) for length in lengths]
    return PackedDataset(
        Dataset.from_dict({"input_ids": rows, "labels": rows}),
        settings.micro_batch_tokens,
        settings.seed,
        packs_per_step=settings.gradient_accumulation_steps if count > 1 else 1,
    )


def loader_speed(trainer: LoraTrainer) -> float:
    """Tokens per second that the data loader delivers, without a model."""
    start = time.perf_counter()
    tokens = sum(sum(batch["lengths"]) for batch in trainer.get_train_dataloader())
    return tokens / (time.perf_counter() - start)


class StopAfterOne(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


class Meter(TrainerCallback):
    """Seconds of each optimizer step and each save, and peak memory: by CUDA's allocator, or of one step on a CPU."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self.trainer = trainer
        self.cuda = trainer.args.device.type == "cuda"
        self.seconds: list[float] = []
        self.save_seconds: list[float] = []
        self.peak = 0
        self.profile: torch.profiler.profile | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.cuda and state.global_step + 1 == MEASURED_STEP:
            self.peak = held_bytes(self.trainer.model, self.trainer.optimizer)
            activity = torch.profiler.ProfilerActivity.CPU
            self.profile = torch.profiler.profile(activities=[activity], profile_memory=True)
            self.profile.start()
        self.start = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(self._now() - self.start)
        if self.profile:
            self.profile.stop()
            self.peak += peak_of(self.profile)
            self.profile = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated = self._now()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.save_seconds.append(self._now() - self.evaluated)

    def memory(self) -> tuple[int, int | None]:
        """(peak of what tensors took, what the allocator reserved for it: None on a CPU), in bytes."""
        if self.cuda:
            return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return self.peak, None

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def held_bytes(model: torch.nn.Module, optimizer: Any) -> int:
    """Bytes of weights, adapters and optimizer state, each storage once."""
    state: Iterable[Any] = (value for values in optimizer.state.values() for value in values.values())
    tensors = [*model.parameters(), *model.buffers(), *(value for value in state if isinstance(value, torch.Tensor))]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def peak_of(profile: torch.profiler.profile) -> int:
    """The most bytes that were allocated and not yet released while the profile ran."""
    live = peak = 0
    events: Any = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
