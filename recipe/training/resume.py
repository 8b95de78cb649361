"""Checkpoints on the disk: the newest whole one, damaged ones set aside, old ones removed."""

import errno
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipe.core.errors import RecipeError
from recipe.core.files import digest
from recipe.core.manifest import check_intact, read_manifest
from recipe.core.text import say
from recipe.training.distributed import Ranks

STAGE = "checkpoint"
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)  # errors of reading that no second try mends


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, newest first. Files, links and other names are not this recipe's."""
    paths = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{1,12}", path.name)]
    paths = [path for path in paths if path.is_dir() and not path.is_symlink()]
    return sorted(paths, key=_step, reverse=True)


def find_checkpoint(folder: Path, packs: list[list[int]], keep: int) -> Path | None:
    """The checkpoint to resume from, None if there is none; packs and keep are those of the run that resumes.

    Raises RecipeError if the checkpoint was made with other packs.
    """
    remove_partial(folder)
    if not (newest := newest_checkpoint(folder)):
        return None
    path, manifest = newest
    check_packs(path, manifest, packs)
    rotate(folder, keep)  # a process that was killed while it saved may not have come to it
    return path


def share_checkpoint(folder: Path, packs: list[list[int]], keep: int, ranks: Ranks) -> Path | None:
    """The checkpoint that all processes of a run resume from: the one that the first process finds.

    On a CPU this process then uses no more threads than wrote it. Raises RecipeError if another process cannot see it.
    """
    found = None
    if not ranks.rank:
        found = find_checkpoint(folder, packs, keep)
    name = ranks.share(found.name if found else "")
    checkpoint = folder / name if name else None
    if checkpoint and not checkpoint.is_dir():
        raise RecipeError(
            f"{checkpoint} is not on this machine, expected it here too: all machines of a run need the same folder of "
            "runs, as on a network file system"
        )
    if checkpoint:
        manifest = read_manifest(checkpoint)
        use_threads(manifest)
        if not ranks.rank:
            report_threads(checkpoint, manifest, torch.get_num_threads(), ranks.size)
    return checkpoint


def use_threads(manifest: Mapping[str, Any]) -> None:
    """On a CPU, use no more threads than the checkpoint was written with, unless OMP_NUM_THREADS says so.

    With as many, sums are added in the same order. More may be free now than when the run began.
    """
    earlier = manifest["results"].get("threads")
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ and earlier:
        torch.set_num_threads(min(earlier, torch.get_num_threads()))


def resumed_from(checkpoint: Path, threads: int, processes: int) -> list[list[int]]:
    """[threads, processes] of the parts of a run so far, where they are not those of the process that resumes."""
    results = read_manifest(checkpoint)["results"]
    writer = [results.get("threads", threads), results.get("processes", 1)]
    parts = [*results.get("resumed_from", []), writer]
    return sorted(list(part) for part in {tuple(part) for part in parts} if part != (threads, processes))


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its manifest. A damaged one is reported and renamed, never removed."""
    for path in list_checkpoints(folder):
        try:
            manifest = check_intact(path)
        except (RecipeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno not in DAMAGE:
                raise  # it may pass, as that of a network file system does
            aside = set_aside(path)
            say(f"{path.name} is damaged or incomplete and was renamed to {aside.name}: {error}")
        else:
            return path, manifest
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to a name that is not in use; the new path. It may be all that is left of a run."""
    number = 1
    while (aside := path.with_name(f"damaged-{path.name}-{number}")).exists():
        number += 1
    return path.rename(aside)


def remove_partial(folder: Path) -> None:
    """Remove the checkpoints that a killed process was writing or removing."""
    for path in folder.glob(".checkpoint-*"):
        if re.fullmatch(r"\.checkpoint-\d+\.(partial|old)", path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints. To be called when the newest one is complete."""
    for path in list_checkpoints(folder)[keep:]:
        old = path.with_name(f".{path.name}.old")  # a kill leaves no half of a checkpoint under its own name
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(path.rename(old))


def hash_packs(packs: list[list[int]]) -> dict[str, str]:
    """The `inputs` of a checkpoint's manifest."""
    return {"packs": digest(packs)}


def check_packs(checkpoint: Path, manifest: Mapping[str, Any], packs: list[list[int]]) -> None:
    """Raises RecipeError if the checkpoint was made with other packs: a run resumes by skipping packs."""
    if manifest["inputs"] != hash_packs(packs):
        raise RecipeError(
            f"{checkpoint} was made with other packs than this version of the recipe makes, so a resumed run would "
            "train on some conversations twice and on others never: resume with the version that began the run, or "
            f"remove {checkpoint.parent} to start it over"
        )


def report_threads(checkpoint: Path, manifest: Mapping[str, Any], threads: int, processes: int = 1) -> None:
    """Say that the checkpoint was written with another number of CPU threads or of processes, if it was."""
    results = manifest.get("results", {})
    earlier, before = results.get("threads"), results.get("processes", 1)
    if before != processes:
        say(
            f"{checkpoint.name} was written by {before} processes and {processes} resume from it: gradients are added "
            "in another order, so the resumed run is not bit-identical to an uninterrupted one"
        )
    elif earlier != threads:
        say(
            f"{checkpoint.name} was written with {earlier} CPU threads and this process uses {threads}: sums are "
            "added in another order, so the resumed run is not bit-identical to an uninterrupted one "
            f"(set OMP_NUM_THREADS={earlier} for that)"
        )


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
