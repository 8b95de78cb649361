"""Checkpoints: sealed with a manifest when saved, verified before a run resumes from them."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from recipe.core.errors import RecipeError
from recipe.core.files import digest
from recipe.core.manifest import check_intact, read_manifest, write_manifest
from recipe.core.text import say
from recipe.model.adapter import check_adapter


class SealCheckpoint(TrainerCallback):
    """Check the adapter in a checkpoint and give it a manifest: without one it counts as half-written."""

    def __init__(self, packs: list[list[int]]) -> None:
        self.inputs = {"packs": digest(packs)}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        check_adapter(folder, trained=False)
        write_manifest(folder, "checkpoint", {}, self.inputs, {"step": state.global_step})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`; damaged ones are said and removed.

    Its files are this run's own pickles: they are opened only because every hash in its manifest holds.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            check_intact(path)
        except RecipeError as error:
            say(f"{path.name} is damaged or was not finished and is removed: {error}")
            shutil.rmtree(path)
        else:
            return path
    return None


def check_packs(checkpoint: Path, packs: list[list[int]]) -> None:
    """Raises RecipeError where another version of this code packed otherwise: a run goes on by skipping packs."""
    if read_manifest(checkpoint)["inputs"] != {"packs": digest(packs)}:
        raise RecipeError(
            f"{checkpoint} was made over other packs than this version of the recipe makes, or does not say over "
            "which, so going on would train on some conversations twice and on others never: go on with the version "
            f"that began the run, or remove {checkpoint.parent} to start it over"
        )
