"""Hugging Face's Trainer with the loss normalised over the trained tokens of an optimizer step."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from recipe.core.config import Train
from recipe.core.errors import RecipeError
from recipe.model.likelihood import causal_lm, held_out_nll, trained_nll
from recipe.pascal.recompute import recompute_first
from recipe.training.callbacks import Progress
from recipe.training.dataset import batches, collate, packs_of, shared_start
from recipe.training.resume import SealCheckpoint

OPTIMIZERS = {"adamw": "adamw_torch", "adamw8bit": "adamw_bnb_8bit"}


class LoraTrainer(Trainer):
    """Trainer with the loss normalised over the trained tokens of the whole optimizer step."""

    def __init__(self, *args: Any, packs: list[list[int]], budget: int, shared: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.packs = packs  # of the whole run, in order
        self.budget = budget  # tokens of a pack
        self.shared = shared  # tokens that all conversations begin with
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's tokens: Trainer must not again
        self.tokens = 0  # of the conversations since this process began, what they share counted for each

    def get_train_dataloader(self) -> DataLoader:
        """The whole run as one pass over its packs, so that resuming is skipping and nothing else.

        Trainer's own epochs are not used: where an epoch's packs are no multiple of the accumulation, it
        counts fewer steps than it makes (transformers 4.49), ends early, and resumes at another sample.
        """
        loader = DataLoader(self.train_dataset, batch_sampler=self.packs, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> torch.Tensor:
        """The pack's share of the step's mean loss: summed nats over the step's number of trained tokens."""
        nll, count = trained_nll(model, inputs)
        self.tokens += sum(inputs["lengths"])
        return nll / (num_items_in_batch or count)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RecipeError(
                f"the loss became {loss.item()} after step {self.state.global_step}, expected a finite number; "
                f"lower train.learning_rate (now {self.args.learning_rate:g}) or look at the samples of that step"
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out loss over trained tokens: one sum over all of them, whatever the batches look like."""
        nll, count = held_out_nll(self.model, batches(self.eval_dataset, self.budget))
        metrics = {"eval_loss": nll / count}
        self.log(dict(metrics))
        return metrics


def training_arguments(train: Train, folder: Path, on_card: bool) -> TrainingArguments:
    """Our fields in the Trainer's words."""
    return TrainingArguments(
        output_dir=str(folder),
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
        fp16=on_card,  # autocast and a loss scale: fp16 gradients of a mean over thousands of tokens would vanish
        use_cpu=not on_card,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default hides exactly what must stop the run
        eval_strategy="steps" if train.eval_steps else "no",
        eval_steps=train.eval_steps or None,
        save_steps=train.save_steps,
        save_total_limit=train.keep_checkpoints,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,  # Progress below shows tokens and time left
    )


def build_trainer(
    model: Any, train: Train, folder: Path, rows: Any, val_rows: Any, on_card: bool, recomputed: int = 0
) -> LoraTrainer:
    """The Trainer of one run, its callbacks in place and the first `recomputed` layers recomputing."""
    recompute_first(causal_lm(model).model.layers, recomputed)
    shared = shared_start(rows)
    trainer = LoraTrainer(
        model=model,
        args=training_arguments(train, folder / "checkpoints", on_card),
        data_collator=partial(collate, shared=shared),
        packs=packs_of(rows, train, shared),
        budget=train.micro_batch_tokens,
        shared=shared,
        train_dataset=rows,
        eval_dataset=val_rows,
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(trainer, folder / "metrics.jsonl", train.epochs))
    trainer.add_callback(SealCheckpoint(trainer.packs))
    return trainer
