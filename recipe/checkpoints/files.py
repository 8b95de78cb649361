"""Files of a checkpoint: present, whole, listed by a manifest, and small enough for the disk."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, existing_folder
from recipe.core.manifest import read_manifest
from recipe.core.text import snippet

LFS_POINTER = b"version https://git-lfs"
SPARE_BYTES = 100_000_000  # tokenizer, configs, and what a file system keeps for itself


def check_not_pointer(path: Path) -> None:
    """Raises RecipeError if a file is missing, or is the pointer that Git LFS stores instead of it."""
    if not path.is_file():
        raise RecipeError(f"{path} is missing: the checkpoint is incomplete, download it again")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise RecipeError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises RecipeError if it is missing, or anything else."""
    check_not_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but not text
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not JSON ({snippet(error)}): download it again") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path} is not a JSON object: download it again")
    return value


def listed_files(folder: Path) -> list[str] | None:
    """The files that a folder's manifest lists, as relative paths; None if it has no manifest."""
    return list(read_manifest(folder)["outputs"]) if (Path(folder) / MANIFEST).is_file() else None


def check_listed(hashes: Mapping[Path, str]) -> None:
    """Raises RecipeError if a file's sha256 is not that of the manifest in its folder, where one lists it."""
    manifests = {
        folder: read_manifest(folder)["outputs"]
        for folder in {path.parent for path in hashes}
        if (folder / MANIFEST).is_file()
    }
    for path, found in hashes.items():
        expected = manifests.get(path.parent, {}).get(path.name)
        if expected and expected["sha256"] != found:
            raise RecipeError(f"{path} was altered: its sha256 differs from the manifest; re-create {path.parent}")


def check_disk(output: Path, size: int) -> None:
    """Raises RecipeError unless `size` bytes and a reserve fit on the disk of `output`."""
    folder = existing_folder(output)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise RecipeError(
            f"{folder} has {free / 1e9:.1f} GB free, the weights need {(size + SPARE_BYTES) / 1e9:.1f} GB: "
            "free some, or name a folder on another disk"
        )
