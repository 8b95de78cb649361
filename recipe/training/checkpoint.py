"""Checkpoints of a run: what Trainer would write and read, without pickles, whole or not at all."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from recipe.core.files import atomic_folder
from recipe.core.manifest import write_manifest
from recipe.model.adapter import check_adapter, write_adapter
from recipe.training.dataset import PackedDataset
from recipe.training.distributed import Ranks
from recipe.training.faults import MemoryFallback, SkippedSteps
from recipe.training.resume import STAGE, hash_packs, resumed_from, rotate
from recipe.training.selection import Selection, trained_parameters
from recipe.training.state import read_state, unreadable, write_state

MOMENTS = {"exp_avg", "exp_avg_sq", "state1", "state2"}  # of torch's AdamW and of bitsandbytes' 8-bit one


class CheckpointingTrainer(Trainer):
    """Trainer with checkpoints of this recipe.

    Trainer's own hold pickles, a host name and a time, and replace the old one before they are complete.
    """

    train_dataset: PackedDataset
    ranks: Ranks
    selection: Selection
    memory: MemoryFallback
    skipped: SkippedSteps
    keep_checkpoints: int
    saved_step = 0
    resumed_from: Sequence[Sequence[int]] = ()  # [threads, processes] of earlier parts of the run, if they were others

    def check_ranks(self) -> None:
        """Raises RecipeError if the processes do not have the same adapter to the bit."""
        if self.ranks.size > 1:
            content = hashlib.sha256()
            for parameter in trained_parameters(self.model).values():
                content.update(parameter.detach().cpu().numpy().tobytes())
            remedy = "a device is faulty; the same command resumes from the last checkpoint, when they were equal"
            self.ranks.check_equal({"its adapter": content.hexdigest()}, remedy)

    def end_part(self) -> None:
        """From now on the run has another number of threads: those so far are of an earlier part."""
        part = [torch.get_num_threads(), self.ranks.size]
        self.resumed_from = [*self.resumed_from, part] if part not in self.resumed_from else self.resumed_from

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write a whole checkpoint with its manifest, then remove older ones. The first process does, for all."""
        self.check_ranks()
        step = self.saved_step = self.state.global_step
        if self.ranks.rank:
            return
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        with atomic_folder(folder, replace_any=True) as partial:
            write_adapter(self.model, partial)
            check_adapter(partial, trained=False)
            self.state.save_to_json(str(partial / "trainer_state.json"))
            write_state(partial, self._training_state())
            results = {"step": step, "threads": torch.get_num_threads(), "processes": self.ranks.size}
            results |= {"resumed_from": self.resumed_from} if self.resumed_from else {}
            write_manifest(partial, STAGE, {}, hash_packs(self.train_dataset.packs), results)
        rotate(folder.parent, self.keep_checkpoints)

    def save_last_step(self) -> None:
        """A checkpoint of the last finished step, after the loop was left inside the next one."""
        if self.state.global_step > self.saved_step:
            self._save_checkpoint(self.model)

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
        try:
            self._take_state(state)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise unreadable(Path(checkpoint), error) from None
        self.saved_step = int(Path(checkpoint).name.rpartition("-")[2])
        self.resumed_from = resumed_from(Path(checkpoint), torch.get_num_threads(), self.ranks.size)

    def _take_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            if any(values[name].shape != parameter.shape for name in MOMENTS & values.keys()):
                raise ValueError("moments of other shapes than the adapter's")
        self.lr_scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] and self.accelerator.scaler:  # a GPU that computes in fp32 has none
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, part in self._own_state().items():
            part.load_state_dict(state.get(name, part.state_dict()))  # a checkpoint of an earlier version has none

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: `_load_optimizer_and_scheduler` does it."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: each pack has its own seed."""
