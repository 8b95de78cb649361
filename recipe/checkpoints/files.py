"""Files of a checkpoint: there, whole, and what they claim to be."""

import json
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.text import snippet

LFS_POINTER = b"version https://git-lfs"


def check_not_pointer(path: Path) -> None:
    """Raises RecipeError where a file is missing, or is the text stub that Git LFS leaves instead of it."""
    if not path.is_file():
        raise RecipeError(f"{path} is missing: the checkpoint is incomplete, download it again")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise RecipeError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises RecipeError where it is missing, or anything else."""
    check_not_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not JSON ({snippet(error)}): download it again") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path} is not a JSON object: download it again")
    return value
