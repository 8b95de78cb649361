"""What Hugging Face's Trainer lacks for this recipe: an exact loss, proof of every checkpoint, a stop that behaves."""

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from recipe import console, provenance
from recipe.config import Train
from recipe.data import batches, collate, packs_of, shared_start
from recipe.errors import RecipeError
from recipe.model import causal_lm, check_adapter, held_out_nll, trained_nll
from recipe.pascal.recompute import recompute_first

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


def arguments(train: Train, folder: Path, on_card: bool) -> TrainingArguments:
    """Our fields in the Trainer's words."""
    return TrainingArguments(
        output_dir=str(folder),
        seed=train.seed,
        data_seed=train.seed,
        num_train_epochs=1,  # the packs of all epochs are one pass
        per_device_train_batch_size=1,  # a pack
        gradient_accumulation_steps=train.accumulation,
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


def make(
    model: Any, train: Train, folder: Path, rows: Any, val_rows: Any, on_card: bool, recomputed: int = 0
) -> LoraTrainer:
    """The Trainer of one run, its callbacks in place and the first `recomputed` layers recomputing."""
    recompute_first(causal_lm(model).model.layers, recomputed)
    shared = shared_start(rows)
    trainer = LoraTrainer(
        model=model,
        args=arguments(train, folder / "checkpoints", on_card),
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


class Progress(TrainerCallback):
    """A bar with loss, tokens/s and time left; one line of metrics.jsonl per optimizer step."""

    def __init__(self, trainer: LoraTrainer, metrics: Path, epochs: float) -> None:
        self.trainer, self.metrics, self.epochs = trainer, metrics, epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        keep_until(self.metrics, state.global_step)
        self.start = time.monotonic()
        self.bar = console.progress(total=state.max_steps, initial=state.global_step, desc="train", unit=" steps")

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
    with provenance.atomic_file(metrics) as file:
        file.writelines(f"{row}\n" for row in rows)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # a line cut off by a power failure


class SealCheckpoint(TrainerCallback):
    """Check the adapter in a checkpoint and give it a manifest: without one it counts as half-written."""

    def __init__(self, packs: list[list[int]]) -> None:
        self.inputs = {"packs": provenance.digest(packs)}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        check_adapter(folder, trained=False)
        provenance.write_manifest(folder, "checkpoint", {}, self.inputs, {"step": state.global_step})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`; damaged ones are said and removed.

    Its files are this run's own pickles: they are opened only because every hash in its manifest holds.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            provenance.check_intact(path)
        except RecipeError as error:
            console.say(f"{path.name} is damaged or was not finished and is removed: {error}")
            shutil.rmtree(path)
        else:
            return path
    return None


def check_packs(checkpoint: Path, packs: list[list[int]]) -> None:
    """Raises RecipeError where another version of this code packed otherwise: a run goes on by skipping packs."""
    if provenance.read_manifest(checkpoint)["inputs"] != {"packs": provenance.digest(packs)}:
        raise RecipeError(
            f"{checkpoint} was made over other packs than this version of the recipe makes, or does not say over "
            "which, so going on would train on some conversations twice and on others never: go on with the version "
            f"that began the run, or remove {checkpoint.parent} to start it over"
        )


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
            console.say("\nstopping after this step and saving; once more to stop at once")

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
