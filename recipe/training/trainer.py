"""Hugging Face's Trainer with packs, a loss normalized over the optimizer step, and checkpoints of this recipe."""

import math
import operator
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from recipe.core.config import Train
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_folder
from recipe.core.manifest import write_manifest
from recipe.core.run import Run
from recipe.core.text import say
from recipe.model.adapter import check_adapter, write_adapter
from recipe.model.likelihood import causal_lm, trained_nll, validation_nll
from recipe.training.callbacks import Progress, peak_memory
from recipe.training.dataset import PackedDataset
from recipe.training.faults import MemoryFallback, SkippedSteps, write_batch
from recipe.training.resume import STAGE, hash_packs, list_checkpoints, rotate
from recipe.training.selection import Selection
from recipe.training.state import read_state, write_state

if TYPE_CHECKING:
    from peft import PeftModel

OPTIMIZERS = {"adamw": "adamw_torch", "adamw8bit": "adamw_bnb_8bit"}
# Device -> what torch 2.0.1 computes in another order in every process, by its own warning. On a CPU: nothing, with the
# same number of threads (tests/training/test_reproducible.py asks torch).
NONDETERMINISTIC = {"cuda": ["the backward pass of memory-efficient attention"]}


@dataclass(frozen=True)
class TrainResults:
    """The numbers of a finished run; the same on every replay with as many threads."""

    steps: int
    packs: int
    prefix_tokens: int  # common prefix of all conversations
    fill: float  # share of the packs' token budget that is used
    samples: int
    tokens: int
    trained_tokens: int
    first_loss: float | None
    last_loss: float | None
    validation_loss: float  # of the saved adapter
    adapter_step: int  # the step of the saved adapter
    stopped_early: bool  # by train.patience
    skipped_steps: int  # fp16 gradients overflowed
    split_packs: int  # packs computed in parts because memory ran out; with any, the bits are not those of other runs
    threads: int  # CPU threads: they decide the order in which sums are added
    nondeterministic: list[str]  # operations without a deterministic implementation


class LoraTrainer(Trainer):
    """Trainer on a `PackedDataset`: the loss is the mean over the trained tokens of the whole optimizer step."""

    train_dataset: PackedDataset
    eval_dataset: PackedDataset

    def __init__(self, *args: Any, run: Run, selection: Selection, keep_checkpoints: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        self.selection = selection
        self.keep_checkpoints = keep_checkpoints
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's tokens: Trainer must not again
        self.tokens = 0  # of all conversations since this process began, the common prefix counted for each
        self.learning_rate = 0.0
        self.packs: list[dict[str, Any]] = []  # of the current step, on the CPU
        self.memory = MemoryFallback(causal_lm(self.model).model.layers)
        self.skipped = SkippedSteps(lambda: self.accelerator.optimizer_step_was_skipped, self._fail)
        self.add_callback(self.skipped)

    def get_train_dataloader(self) -> DataLoader:
        """The whole run as one pass over its packs, so that resuming means skipping packs.

        Trainer's own epochs are not used: if the packs of an epoch are not a multiple of the accumulation steps, it
        counts fewer steps than it makes (transformers 4.49), ends early, and resumes at another sample.
        """
        loader = DataLoader(self.train_dataset, batch_size=1, collate_fn=operator.itemgetter(0))
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> torch.Tensor:
        """The pack's share of the step's mean loss: summed nats over the step's number of trained tokens."""
        nll, count = trained_nll(model, inputs)
        return nll / (num_items_in_batch or count)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int) -> tuple[list[dict[str, Any]], int | None]:
        """The packs of the next step and their number of trained tokens; no pack once the run stopped early."""
        if self.selection.exhausted:
            return [], None
        batch, tokens = super().get_batch_samples(epoch_iterator, num_batches)
        self.packs = []
        return batch, tokens

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: int | None = None) -> torch.Tensor:
        """Forward and backward pass of a pack; the loss that `compute_loss` returns.

        Where memory runs out, the packs of the step so far are computed again with less. Raises RecipeError if that is
        not possible, or if the loss is not finite.
        """
        self.packs.append(inputs)
        self.learning_rate = super()._get_learning_rate()
        loss = self._compute_pack(model, inputs, num_items_in_batch)
        while loss is None:
            self.memory.relieve(inputs, self.state.global_step + 1)
            model.zero_grad()  # the backward pass may have ended halfway
            for pack in self.packs:
                if (loss := self._compute_pack(model, pack, num_items_in_batch)) is None:
                    break
        if not torch.isfinite(loss):
            self._fail(f"the loss became {loss.item()} after step {self.state.global_step}, expected a finite number")
        self.tokens += sum(inputs["lengths"])
        self.memory.split_packs += self.memory.parts > 1
        return loss

    def _compute_pack(self, model: Any, pack: dict[str, Any], num_items_in_batch: int | None) -> torch.Tensor | None:
        """None if memory ran out: outside of the handler, whose traceback would keep all activations."""
        # dropout depends on the pack alone: it draws the same numbers after a resume and when a step is repeated
        torch.manual_seed(random.Random(f"{self.args.seed} {pack['number']}").getrandbits(63))  # noqa: S311
        try:
            parts = [
                super(LoraTrainer, self).training_step(model, part, num_items_in_batch)
                for part in self.memory.split(pack)
            ]
        except torch.cuda.OutOfMemoryError:  # type: ignore[misc] # untyped in torch 2.0.1
            return None
        return torch.stack(parts).sum()

    def _fail(self, what: str) -> NoReturn:
        """Write the packs of the step and raise RecipeError: `what` happened, and how to go on."""
        step = self.state.global_step
        write_batch(self.run.failed_batch, step + 1, self.packs, self.train_dataset.packs)
        kept = next(iter(list_checkpoints(self.run.checkpoints)), None)
        resume = f"; {kept.name} is kept, and the same command resumes from it" if kept else ""
        raise RecipeError(
            f"{what}; lower train.learning_rate (now {self.args.learning_rate:g}), which begins a new run, or look at "
            f"the conversations of that step in {self.run.failed_batch}{resume}"
        )

    def _get_learning_rate(self) -> float:
        """The rate of the logged step; Trainer's own is already that of the next one."""
        return self.learning_rate

    def status(self) -> dict[str, float]:
        """Numbers of this moment for metrics.jsonl. Without fp16 the loss is not scaled: a scale of 1."""
        scaler = getattr(self.accelerator, "scaler", None)
        return {
            "memory_mb": peak_memory(self.args.device) >> 20,
            "loss_scale": scaler.get_scale() if scaler else 1.0,
            "skipped_steps": self.skipped.total,
        }

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation loss: the mean in nats over all trained tokens, however they are packed."""
        nll, count = validation_nll(self.model, self.eval_dataset)
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
        data = self.train_dataset
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainResults(
            steps=self.state.global_step,
            packs=len(data),
            prefix_tokens=data.prefix,
            fill=data.fill,
            samples=len(data.lengths),
            tokens=sum(data.lengths),
            trained_tokens=data.trained_tokens,
            first_loss=losses[0] if losses else None,
            last_loss=losses[-1] if losses else None,
            validation_loss=validation_loss,
            adapter_step=adapter_step,
            stopped_early=stopped_early,
            skipped_steps=self.skipped.total,
            split_packs=self.memory.split_packs,
            threads=torch.get_num_threads(),
            nondeterministic=NONDETERMINISTIC.get(self.args.device.type, []),
        )

    # Checkpoints: Trainer's own hold pickles, a host name and a time, and replace the old one before they are complete.

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write a whole checkpoint with its manifest, then remove older ones."""
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        with atomic_folder(folder, replace_any=True) as partial:
            write_adapter(self.model, partial)
            check_adapter(partial, trained=False)
            self.state.save_to_json(str(partial / "trainer_state.json"))
            write_state(partial, self._training_state())
            results = {"step": step, "threads": torch.get_num_threads()}
            write_manifest(partial, STAGE, {}, hash_packs(self.train_dataset.packs), results)
        rotate(folder.parent, self.keep_checkpoints)

    def _training_state(self) -> dict[str, Any]:
        scaler = getattr(self.accelerator, "scaler", None)
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            **{name: part.state_dict() for name, part in self._own_state().items()},
        }

    def _own_state(self) -> dict[str, Any]:
        return {"selection": self.selection, "memory": self.memory, "skipped": self.skipped}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, check_adapter(Path(resume_from_checkpoint), trained=False))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint))
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, part in self._own_state().items():
            part.load_state_dict(state[name])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: `_load_optimizer_and_scheduler` does it."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: each pack has its own seed."""


def training_arguments(train: Train, folder: Path, cuda: bool) -> TrainingArguments:
    """The fields of `train` in Trainer's terms. One GPU is used even if more are visible."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        logging_dir=str(folder),  # the default has a time and the host name in it
        seed=train.seed,
        data_seed=train.seed,
        num_train_epochs=1,  # the packs of all epochs are one pass
        per_device_train_batch_size=1,  # a pack
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_ratio=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=OPTIMIZERS[train.optimizer],
        fp16=cuda,  # autocast and a loss scale: without it fp16 gradients of a mean over many tokens underflow
        use_cpu=not cuda,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default hides exactly what must stop the run
        eval_strategy="steps" if train.eval_steps else "no",
        eval_steps=train.eval_steps or None,
        save_steps=train.save_steps,
        save_total_limit=None,  # `rotate` removes old checkpoints once the new one is complete
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,  # Progress shows tokens per second and the remaining time
    )
    if arguments.n_gpu > 1:  # else Trainer would wrap the model in DataParallel, which cannot split a pack
        say(f"{arguments.n_gpu} GPUs are visible, the run uses {arguments.device}: choose one by CUDA_VISIBLE_DEVICES")
        arguments._n_gpu = 1
    return arguments


def build_trainer(
    model: "PeftModel", train: Train, run: Run, data: PackedDataset, validation: PackedDataset, cuda: bool
) -> LoraTrainer:
    """The Trainer of one run. The model must be prepared already (`model.prepare.prepare_for_training`)."""
    trainer = LoraTrainer(
        model=model,
        args=training_arguments(train, run.checkpoints, cuda),
        train_dataset=data,
        eval_dataset=validation,
        run=run,
        selection=Selection(train.keep == "best", train.patience),
        keep_checkpoints=train.keep_checkpoints,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(lambda: trainer.tokens, trainer.status, run, train.epochs))
    return trainer
