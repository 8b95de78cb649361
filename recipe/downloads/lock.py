"""The lock of a source: recorded when it is first fetched, enforced at every later fetch.

It lies beside the fetched folder, `data/raw/dolly.lock.json` for `data/raw/dolly`, and survives it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.text import say, snippet

Files = Mapping[str, Mapping[str, Any]]  # name -> sha256 and bytes


def path_of(output: Path) -> Path:
    """The lock of a fetched folder."""
    return output.with_name(f"{output.name}.lock.json")


def read(output: Path) -> dict[str, Any]:
    """`pins` (what was fetched) and `files` (name -> sha256 and bytes); empty if nothing was ever fetched there.

    Raises RecipeError if the lock is damaged.
    """
    path = path_of(output)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(type(file["sha256"]) is str and type(file["bytes"]) is int for file in found["files"].values()):
            return {"pins": dict(found["pins"]), "files": dict(found["files"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise RecipeError(f"{path} is not a lock of hashes: restore it, or delete it to record the source anew")


def enforce(output: Path, pins: Mapping[str, str], files: Files) -> None:
    """Record `files` where no lock holds for these `pins` yet. Raises RecipeError where one does and differs."""
    locked = read(output)
    if locked and locked["pins"] == dict(pins):
        for name in sorted({*locked["files"], *files}):
            if locked["files"].get(name) != files.get(name):
                raise RecipeError(
                    f"{snippet(name)} is not the file that {path_of(output)} records: the source changed since it was "
                    "first fetched; find out why, and delete the lock to accept the new files"
                )
        return
    with atomic_file(path_of(output)) as file:
        json.dump({"pins": dict(pins), "files": dict(files)}, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
    say(f"{'replaced' if locked else 'wrote'} {path_of(output)}: later fetches must find the same hashes")


def missing(output: Path, folder: Path) -> list[str]:
    """What the lock lists and `folder` lacks, with sizes, for a machine without a network."""
    files = read(output).get("files", {})
    gone = {name: file["bytes"] for name, file in files.items() if not (folder / name).is_file()}
    return [f"{snippet(name)} ({size / 1e6:,.1f} MB)" for name, size in sorted(gone.items())]
