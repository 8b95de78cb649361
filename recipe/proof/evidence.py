"""What is known of a finished run, read once for all the statements about it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import sha256
from recipe.core.manifest import check_intact, hash_inputs, read_manifest
from recipe.core.run import Run, records_problems

DOCKER = Path(__file__).parents[2] / "docker"
PRIVATE = ("failed_batch.json", "tensorboard/")  # conversations; metrics once more, in files named after the host


@dataclass(frozen=True)
class Package:
    """A line of the lock."""

    name: str
    version: str
    hashes: tuple[str, ...]  # sha256 of each file that may be installed for it


@dataclass(frozen=True)
class Evidence:
    """A run's manifest, those of its base and corpus where they are at hand, its evaluation, its packages."""

    name: str  # name/id
    run: Mapping[str, Any]
    base: Mapping[str, Any] | None
    corpus: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    packages: tuple[Package, ...]
    files: Mapping[str, Path]  # name in the bundle -> where it is
    image: str  # digest of the container image; empty: none is recorded
    date: str  # YYYY-MM-DD

    @property
    def licence(self) -> str:
        return str(((self.base or {}).get("results") or {}).get("licence") or "unknown")


def collect(run: Run, config: Config, image: str, date: str) -> Evidence:
    """Read and verify a run; `image` counts where its manifest names none.

    Raises RecipeError if the run is not intact, or was made with another lock than this one.
    """
    manifest = check_intact(run.folder)
    for problem in records_problems(run.folder):
        raise RecipeError(f"{problem}; restore it, or run the stage that wrote it again")
    lock = DOCKER / "requirements.lock"
    if manifest["environment"].get("lock") != sha256(lock):
        raise RecipeError(
            f"{lock} is not the lock that {run.folder} was made with: bundle it from the version that made it"
        )
    names = (*manifest["outputs"], *(name for name in run.records() if not name.startswith(PRIVATE)))
    files = {f"run/{name}": run.folder / name for name in names}
    files |= {f"run/{name}": run.folder / name for name in ("manifest.json", "records.json")}
    files |= {f"environment/{path.name}": path for path in (lock, DOCKER / "pins.toml")}
    for merged in sorted(run.folder.glob("merged*/manifest.json")):
        files[f"run/{merged.parent.name}/manifest.json"] = merged
    base, corpus = (
        read_input(manifest, *item) for item in (("base", config.base.path), ("corpus", config.corpus.path))
    )
    for name, found in (("base", base), ("corpus", corpus)):
        if found:
            files[f"{name}/manifest.json"] = found[1] / "manifest.json"
    if corpus and (report := corpus[1] / "report.md").is_file():
        files["corpus/report.md"] = report  # counts alone: report.html and the samples hold conversations
    evaluation = json.loads(run.eval_json.read_text(encoding="utf-8")) if run.eval_json.is_file() else None
    return Evidence(
        name=f"{run.folder.parent.name}/{run.folder.name}",
        run=manifest,
        base=base[0] if base else None,
        corpus=corpus[0] if corpus else None,
        evaluation=evaluation,
        packages=read_packages(lock),
        files=dict(sorted(files.items())),
        image=manifest["environment"].get("image") or image,
        date=date,
    )


def read_input(manifest: Mapping[str, Any], name: str, path: str) -> tuple[Mapping[str, Any], Path] | None:
    """(manifest, folder) of an input, if the folder is still the one that the run was made from."""
    folder = Path(path or ".")
    if not (folder / "manifest.json").is_file() or hash_inputs({name: folder})[name] != manifest["inputs"].get(name):
        return None
    return read_manifest(folder), folder


def read_packages(lock: Path) -> tuple[Package, ...]:
    """The packages of a lock, with the hashes of all their files."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8").strip())
    out = []
    for block in blocks:
        if pinned := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", block):
            hashes = tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", block)))
            out.append(Package(pinned[1].lower(), pinned[2], hashes))
    return tuple(out)
