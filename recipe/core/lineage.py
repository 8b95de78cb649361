"""What an artefact is made from, followed back to raw files, and in what two artefacts differ."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, list_unlisted
from recipe.core.manifest import differences, hash_inputs, read_manifest, verify
from recipe.core.run import EVAL_PARTS, RECORDS, Run, records_problems
from recipe.core.text import printable, snippet

OWN = (RECORDS, EVAL_PARTS)  # of a run; its other files are in a manifest
# Parts of a manifest -> in words, and whether a difference can change a result.
PARTS = {
    "config": ("config", "yes"),
    "data": ("data", "yes"),
    "weights": ("weights", "yes"),
    "code": ("code", "perhaps: compare the versions"),
    "environment": ("environment", "perhaps: another library may round differently"),
    "hardware": ("hardware", "perhaps in the last bits: another CPU, GPU or number of threads adds in another order"),
}
# Of a run, in its results: how its sums were added up.
ORDER = tuple(f"results.{name}" for name in ("threads", "resumed_from", "processes", "split_packs"))


def verify_all(folder: Path) -> list[str]:
    """Problems of an artefact and of those inside it (checkpoints, merged weights), unlisted files included."""
    folder = Path(folder)
    problems = verify(folder)
    nested = sorted(path.parent for path in folder.glob("*/**/" + MANIFEST))
    for inner in nested:
        try:
            problems += verify(inner)
        except RecipeError as error:  # its manifest is damaged, which must not hide what else is
            problems.append(str(error))
    if (folder / "config.toml").is_file():
        problems += [*records_problems(folder), *_check_config(folder)]
    for name in _list_uncovered(folder, nested):
        problems.append(f"{folder}/{printable(name)} is in no manifest")
    return problems


def _list_uncovered(folder: Path, nested: list[Path]) -> Iterator[str]:
    """Files that neither the manifest, the records of a run, nor the manifest of an inner artefact list."""
    inner = {path.relative_to(folder).as_posix(): set(list_unlisted(path)) for path in nested}
    recorded = {*Run(folder).records(), *OWN}
    for name in list_unlisted(folder):
        owner = next((prefix for prefix in inner if name.startswith(f"{prefix}/")), None)
        if owner is not None and name.removeprefix(f"{owner}/") not in inner[owner]:
            continue
        is_lock = name.startswith(".") and name.endswith(".lock")  # of a process that works here, or was killed
        if name not in recorded and not is_lock:
            yield name


def _check_config(folder: Path) -> Iterator[str]:
    """Whether the settings in config.toml that can change the adapter are those of the manifest."""
    try:
        config = Run(folder).config()
    except RecipeError as error:
        yield str(error)
        return
    trained = read_manifest(folder)["config"]
    found = {
        "name": config.name,
        "template": config.corpus.template,
        "precision": config.base.precision,
        "lora": configs.hashed(config.lora),
        "train": configs.hashed(config.train),
    }
    for line in differences(json.loads(json.dumps(found)), {key: trained.get(key) for key in found}):
        yield f"{folder}/config.toml differs from the manifest in {line}"


@dataclass(frozen=True)
class Link:
    """An input of an artefact: where it was found (None: nowhere), and whether its hash matches."""

    owner: Path
    name: str
    path: Path | None
    matches: bool


def trace(folder: Path, config: Config | None = None, seen: frozenset[Path] = frozenset()) -> Iterator[Link]:
    """Every input of `folder`, of its inputs, and so on down to raw files. `config` says where they are.

    A run has its own config; merged weights find it in the run's folder above them. seen: the folders on the way here,
    which received ones may name again.
    """
    folder = Path(folder)
    seen |= {folder.resolve()}
    for place in (folder, folder.parent):
        if config is None and (place / "config.toml").is_file():
            config = Run(place).config()
    config = config or Config()
    candidates = _list_candidates(folder, config)
    for name, expected in read_manifest(folder)["inputs"].items():
        path, matches = _find(name, expected, candidates)
        yield Link(folder, name, path, matches)
        if path is not None and (path / MANIFEST).is_file() and path.resolve() not in seen:
            yield from trace(path, None if name == "start" else config, seen)  # a parent run has a config of its own


def _list_candidates(folder: Path, config: Config) -> dict[str, list[Path]]:
    """Name of an input, or of a file, -> paths where it may be."""
    base, source = Path(config.base.path or "."), Path(config.base.source or ".")
    out = {"base": [base], "corpus": [Path(config.corpus.path or ".")]}
    out |= {"run": [folder.parent], "merged": [folder.with_name("merged")], "start": [Path(config.lora.start or ".")]}
    files = [Path(entry.path) for entry in config.corpus.source] + [Path(path) for path in config.corpus.decontaminate]
    for place in (source, base):
        files += [place] if place.is_file() else sorted(place.glob("*")) if place.is_dir() else []
    for file in files:
        out.setdefault(file.name, []).append(file)
    out["prompts"] = [Path(path) for path in config.corpus.decontaminate]
    return out


def _find(name: str, expected: str, candidates: Mapping[str, list[Path]]) -> tuple[Path | None, bool]:
    short = name.partition(": ")[2] or name
    paths = candidates.get(short) or candidates.get(short.split(" ")[0]) or []
    existing = [path for path in paths if path.exists()]
    for path in existing:
        if hash_inputs({name: path})[name] == expected:
            return path, True
    return (existing[0], False) if existing else (None, False)


def compare(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[str]]:
    """Part (`PARTS`) -> the lines in which two manifests differ there; parts without a difference are absent."""
    found: dict[str, list[str]] = {}
    for line in differences(one, two):
        part, _, rest = line.partition(".")
        part = "hardware" if line.startswith(ORDER) else part.partition(":")[0]
        if part == "inputs":
            of_weights = one.get("stage") in ("convert", "delta")
            part = "weights" if of_weights or rest.startswith(("base", "run", "merged", "adapter", "start")) else "data"
            if rest.startswith(("tokenizer", "special_tokens")) or rest.split(":")[0].endswith(
                (".pth", ".safetensors")
            ):
                part = "weights"
        if part in PARTS:
            found.setdefault(part, []).append(snippet(line, 300))
    return found
