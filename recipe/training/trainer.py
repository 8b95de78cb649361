"""Hugging Face's Trainer with packs, a loss normalized over the optimizer step, and checkpoints of this recipe."""

import math
import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.utils.data import DataLoader, Subset
from transformers import PrinterCallback

from recipe.core.config import Train
from recipe.core.errors import RecipeError
from recipe.core.run import Run
from recipe.core.text import say
from recipe.model.likelihood import causal_lm, trained_nll, validation_nll
from recipe.training.arguments import training_arguments
from recipe.training.callbacks import Progress, Resume, peak_memory
from recipe.training.checkpoint import CheckpointingTrainer
from recipe.training.dataset import PackedDataset
from recipe.training.distributed import Ranks
from recipe.training.faults import MemoryFallback, SkippedSteps, is_out_of_memory, write_batch
from recipe.training.resume import list_checkpoints
from recipe.training.selection import Selection, trained_parameters

if TYPE_CHECKING:
    from peft import PeftModel

CHECK_STEPS = 10  # the processes of a run compare their adapters this often, and before each checkpoint


@dataclass(frozen=True)
class TrainResults:
    """The numbers of a finished run; the same on every replay with as many threads."""

    steps: int
    packs: int
    prefix_tokens: int  # common prefix of all conversations
    fill: float  # share of the packs' token budget that is used
    samples: int
    tokens: int  # of all conversations of all passes, the common prefix counted for each
    trained_tokens: int  # of these, the tokens with a loss
    first_loss: float | None
    last_loss: float | None
    validation_loss: float  # of the saved adapter
    adapter_step: int  # the step of the saved adapter
    stopped_early: bool  # by train.patience
    skipped_steps: int  # fp16 gradients overflowed
    split_packs: int  # packs computed in parts because memory ran out; with any, the bits are not those of other runs
    processes: int  # that shared the packs of each step; sums are added in another order with another number
    threads: int  # CPU threads: they decide the order in which sums are added
    resumed_from: list[list[int]]  # [threads, processes] of earlier parts of the run, if they were others


class Stopped(Exception):
    """The training loop was asked to stop: `LoraTrainer.save_last_step` saves what it has done."""


class LoraTrainer(CheckpointingTrainer):
    """Trainer on a `PackedDataset`: the loss is the mean over the trained tokens of the whole optimizer step.

    With several processes each is such a Trainer, on its own share of the packs (`Ranks`).
    """

    train_dataset: PackedDataset
    eval_dataset: PackedDataset

    def __init__(
        self, *args: Any, run: Run, ranks: Ranks, selection: Selection, keep_checkpoints: int, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        self.ranks = ranks
        self.stop_requested: Callable[[], bool] = lambda: False
        self.signaled: Callable[[], bool] = lambda: False  # whether a signal requested it
        self.selection = selection
        self.keep_checkpoints = keep_checkpoints
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's tokens: Trainer must not again
        self.tokens = 0  # of all conversations since this process began, the common prefix counted for each
        self.learning_rate = 0.0
        self.packs: list[dict[str, Any]] = []  # of the current step and this process, on the CPU
        self.split_packs = 0  # of the current step and this process
        self.step_loss = torch.zeros(())  # of the current step so far; when it ends, of all processes
        self.memory = MemoryFallback(causal_lm(self.model).model.layers)
        self.skipped = SkippedSteps(lambda: self.accelerator.optimizer_step_was_skipped, self._fail)
        self.add_callback(self.skipped)

    def get_train_dataloader(self) -> DataLoader:
        """The whole run as one pass over this process's packs, so that resuming means skipping packs.

        Trainer's own epochs are not used: if the packs of an epoch are not a multiple of the accumulation steps, it
        counts fewer steps than it makes (transformers 4.49), ends early, and resumes at another sample.
        """
        mine = Subset(self.train_dataset, range(self.ranks.rank, len(self.train_dataset), self.ranks.size))
        loader = DataLoader(mine, batch_size=1, collate_fn=operator.itemgetter(0))
        return self.accelerator.prepare(loader)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Trainer's. A warm-up begins with a rate of zero, so a run of one step has none: it would train nothing."""
        if num_training_steps == 1:
            self.args.warmup_ratio = 0.0
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> torch.Tensor:
        """The pack's share of the step's mean loss: summed nats over the step's number of trained tokens."""
        nll, count = trained_nll(model, inputs)
        return nll / (num_items_in_batch or count)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int) -> tuple[list[dict[str, Any]], int | None]:
        """This process's packs of the next step, and the number of trained tokens of all packs of that step.

        No pack once the run stopped early.
        """
        if self.selection.exhausted:
            return [], None
        if self.state.global_step % CHECK_STEPS == 0:
            self.check_ranks()
        batch, tokens = super().get_batch_samples(epoch_iterator, num_batches)
        self.packs, self.split_packs, self.step_loss = [], 0, torch.zeros((), device=self.args.device)
        return batch, int(self.ranks.sum(torch.tensor(tokens)).item()) if batch else None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: int | None = None) -> torch.Tensor:
        """Forward and backward pass of a pack; its share of the loss. The last pack of a step adds the rest.

        Where memory runs out, the packs of the step so far are computed again with less. Raises RecipeError if that is
        not possible, or if the loss is not finite; Stopped if that was requested of any process.
        """
        if self.ranks.any(self.stop_requested()):
            raise Stopped
        self.packs.append(inputs)
        self.learning_rate = super()._get_learning_rate()
        loss = self._compute_pack(model, inputs, num_items_in_batch)
        while loss is None:
            self.memory.relieve(inputs, self.state.global_step + 1)
            model.zero_grad()  # the backward pass may have ended halfway
            self.split_packs = 0
            for pack in self.packs:
                if (loss := self._compute_pack(model, pack, num_items_in_batch)) is None:
                    break
        if not torch.isfinite(loss):
            self._fail(f"the loss became {loss.item()} after step {self.state.global_step}, expected a finite number")
        self.step_loss += loss
        if len(self.packs) == self.args.gradient_accumulation_steps:
            loss = loss + self._sum_over_ranks(model)
        return loss

    def _sum_over_ranks(self, model: Any) -> torch.Tensor:
        """Add up gradients, loss, tokens and divided packs of the step; the loss that the other processes computed."""
        mine, tokens, split_packs = self.step_loss, sum(sum(pack["lengths"]) for pack in self.packs), self.split_packs
        if self.ranks.size > 1:
            gradients = [p.grad for p in trained_parameters(model).values() if p.grad is not None]
            numbers = torch.stack([mine, mine.new_tensor(tokens), mine.new_tensor(split_packs)])
            flat = torch.cat([*(grad.flatten().float() for grad in gradients), numbers])
            self.ranks.sum(flat)
            *parts, numbers = flat.split([*(grad.numel() for grad in gradients), len(numbers)])
            for grad, part in zip(gradients, parts, strict=True):
                grad.copy_(part.view_as(grad))
            self.step_loss, tokens, split_packs = numbers[0], int(numbers[1].item()), int(numbers[2].item())
        self.tokens += tokens
        self.memory.split_packs += split_packs
        return self.step_loss - mine

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The loss of a step in full, where Trainer rounds it to four digits."""
        if "loss" in logs:
            logs["loss"] = self.step_loss.item()
        super().log(logs, *args, **kwargs)

    def _compute_pack(self, model: Any, pack: dict[str, Any], num_items_in_batch: int | None) -> torch.Tensor | None:
        """None if memory ran out: outside of the handler, whose traceback would keep all activations."""
        divided = self.memory.split(pack)
        # dropout depends on the pack alone: it draws the same numbers after a resume and when a step is repeated
        torch.manual_seed(random.Random(f"{self.args.seed} {pack['number']}").getrandbits(63))  # noqa: S311
        try:
            parts = [super(LoraTrainer, self).training_step(model, part, num_items_in_batch) for part in divided]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        self.split_packs += len(divided) > 1
        return torch.stack(parts).sum()

    def _fail(self, what: str) -> NoReturn:
        """Write the packs of the step and raise RecipeError: `what` happened, and how to continue."""
        step = self.state.global_step
        write_batch(self.run.failed_batch, step + 1, self.packs, self.train_dataset.packs)
        kept = next(iter(list_checkpoints(self.run.checkpoints)), None)
        resume = f"; {kept.name} is kept: if a device was at fault, the same command resumes from it" if kept else ""
        raise RecipeError(
            f"{what}; lower train.learning_rate (now {self.args.learning_rate:g}), which begins a new run, or look at "
            f"the conversations of that step in {self.run.failed_batch}{resume}"
        )

    def _get_learning_rate(self) -> float:
        """The rate of the logged step; Trainer's own is already that of the next one."""
        return self.learning_rate

    def _packs_per_step(self) -> int:
        return self.args.gradient_accumulation_steps * self.ranks.size

    def status(self) -> dict[str, float]:
        """Numbers of this moment for metrics.jsonl. Without fp16 the loss is not scaled: a scale of 1."""
        scaler = getattr(self.accelerator, "scaler", None)
        return {
            "tokens": self.train_dataset.count_tokens(self.state.global_step * self._packs_per_step()),
            "memory_mb": peak_memory(self.args.device) >> 20,
            "loss_scale": scaler.get_scale() if scaler else 1.0,
            "skipped_steps": self.skipped.total,
        }

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation loss: the mean in nats over all trained tokens, however they are packed. Raises Stopped."""
        share = validation_nll(self.model, self._own_validation_packs())
        nll, count = self.ranks.sum(torch.tensor(share, dtype=torch.float64)).tolist()
        if not math.isfinite(nll):
            raise RecipeError(
                f"the validation loss became {nll} after step {self.state.global_step}, expected a finite number; "
                f"lower train.learning_rate (now {self.args.learning_rate:g}); the checkpoints are kept"
            )
        metrics = {"eval_loss": nll / count}
        self.selection.update(self.state.global_step, metrics["eval_loss"], self.model)
        self.log(dict(metrics))
        # it resets `should_evaluate`: without it Trainer validates the last step of the run twice
        state, control = self.state, self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, state, control, metrics)
        self.control.should_training_stop |= self.selection.exhausted
        return metrics

    def _own_validation_packs(self) -> Iterator[dict[str, Any]]:
        """This process's share. A signal does not wait for the end, which may be later than a cluster kills.

        train.max_minutes does: a validation longer than that would begin anew with each start, and never end.
        """
        for first in range(0, len(self.eval_dataset), self.ranks.size):
            if self.ranks.any(self.signaled()):
                raise Stopped
            if first + self.ranks.rank < len(self.eval_dataset):
                yield self.eval_dataset[first + self.ranks.rank]

    def resume_validation(self) -> None:
        """Validate the step of the checkpoint if the settings of now ask for it and the log has no such validation."""
        state, every = self.state, self.args.eval_steps
        if self.args.eval_strategy == "no" or not state.global_step or state.global_step % every:
            return
        if not any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history):
            self.evaluate()

    def final_loss(self) -> float:
        """The validation loss after the last step, computed now if the last step was not validated."""
        validations = [entry for entry in self.state.log_history if "eval_loss" in entry]
        if validations and validations[-1]["step"] == self.state.global_step:
            return validations[-1]["eval_loss"]
        return self.evaluate()["eval_loss"]

    def finish(self) -> TrainResults:
        """Validate the last step, put the adapter to keep into the model, and return the numbers of the run."""
        loss, step, best = self.final_loss(), self.state.global_step, self.selection
        early = best.exhausted and step < self.state.max_steps
        if early:
            say(f"stopped early after step {step}: no lower validation loss in {best.waited} validations")
        if best.keep_best:
            best.restore(self.model)
            loss, step = best.loss, best.step
            say(f"keeping the adapter of step {step}, which has the lowest validation loss, {loss:.4f}")
        return self._results(loss, step, early)

    def _results(self, validation_loss: float, adapter_step: int, stopped_early: bool) -> TrainResults:
        data, packs = self.train_dataset, self.state.global_step * self._packs_per_step()
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainResults(
            steps=self.state.global_step,
            packs=len(data),
            prefix_tokens=data.prefix,
            fill=data.fill,
            samples=len(data.lengths),
            tokens=data.count_tokens(packs),
            trained_tokens=data.count_trained_tokens(packs),
            first_loss=losses[0] if losses else None,
            last_loss=losses[-1] if losses else None,
            validation_loss=validation_loss,
            adapter_step=adapter_step,
            stopped_early=stopped_early,
            skipped_steps=self.skipped.total,
            split_packs=self.memory.split_packs,
            processes=self.ranks.size,
            threads=torch.get_num_threads(),
            resumed_from=[list(part) for part in self.resumed_from],
        )


def build_trainer(
    model: "PeftModel",
    train: Train,
    run: Run,
    data: PackedDataset,
    validation: PackedDataset,
    ranks: Ranks | None = None,
) -> LoraTrainer:
    """The Trainer of one run, or of one of its processes.

    The model must be prepared already (`model.prepare.prepare_for_training`).
    """
    ranks, base = ranks or Ranks(), causal_lm(model)
    trainer = LoraTrainer(
        model=model,
        args=training_arguments(
            train, run.checkpoints, base.lm_head.weight.device, ranks.size, hasattr(base, "hf_device_map")
        ),
        train_dataset=data,
        eval_dataset=validation,
        run=run,
        ranks=ranks,
        selection=Selection(train.keep == "best", train.patience),
        keep_checkpoints=train.keep_checkpoints,
    )
    trainer.remove_callback(PrinterCallback)
    if not ranks.rank:
        trainer.add_callback(Progress(lambda: trainer.tokens, trainer.status, run, train.epochs))
    trainer.add_callback(Resume(trainer.resume_validation))  # after Progress, which logs the validation
    return trainer
