"""Every artefact carries a manifest.json: inputs, outputs, config, code, environment, results.

A stage is done when its manifest says so *and every hash in it holds*. Nothing hashed holds a wall-clock time, a host
name or an absolute path, so the same work on another machine leaves the same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, atomic_file, digest, list_files, sha256
from recipe.core.text import say
from recipe.core.versions import code_sha256, environment


def write_manifest(
    folder: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    results: Mapping[str, Any],
    only: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Hash `folder`'s files (all of them, or those under the names in `only`) and write its manifest.json.

    `inputs` maps a name to a sha256 (see `hash_inputs`); `config` and `results` are plain JSON values.
    """
    manifest = {
        "stage": stage,
        "config": dict(config),
        "inputs": dict(inputs),
        "outputs": {
            file.relative_to(folder).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
            for file in list_files(folder)
            if file.name != MANIFEST or file.parent != folder
            if only is None or file.relative_to(folder).parts[0] in only
        },
        "code": code_sha256(),
        "environment": environment(),
        "results": dict(results),
    }
    with atomic_file(folder / MANIFEST) as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")
    return manifest


def hash_inputs(paths: Mapping[str, Path]) -> dict[str, str]:
    """Name -> sha256 of each input: a file's bytes, a folder's files (as its manifest lists them, if it has one)."""
    return {name: _hash_input(Path(path)) for name, path in paths.items()}


def _hash_input(path: Path) -> str:
    if not path.exists():
        raise RecipeError(f"{path} does not exist: an earlier stage makes it (`make` lists them), or the path is wrong")
    if path.is_file():
        return sha256(path)
    if (path / MANIFEST).is_file():
        return digest(read_manifest(path)["outputs"])
    return digest({file.relative_to(path).as_posix(): sha256(file) for file in list_files(path)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact. Raises RecipeError where there is none or it is not readable."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"{folder} has no {MANIFEST}: it was not made by a stage of this recipe, or that stage did not finish"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a manifest ({error}); make {folder} again") from None
    if not isinstance(manifest, dict) or not {"stage", "inputs", "outputs", "config"} <= manifest.keys():
        raise RecipeError(f"{path} is not a manifest of this recipe; make {folder} again")
    return manifest


def verify(folder: Path, but: str = "") -> list[str]:
    """What no longer holds about an artefact: one sentence per missing or altered file. Empty: intact.

    `but` is a suffix of files that something else vouches for.
    """
    problems = []
    for name, expected in read_manifest(folder)["outputs"].items():
        file = Path(folder) / name
        if but and name.endswith(but):
            continue
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != expected["bytes"]:
            problems.append(f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}")
        elif sha256(file) != expected["sha256"]:
            problems.append(f"{file} was altered: its sha256 is not the manifest's")
    return problems


def check_intact(folder: Path, but: str = "") -> dict[str, Any]:
    """The manifest of an artefact that `verify` finds intact; else a RecipeError names the first problem."""
    problems = verify(folder, but)
    if problems:
        raise RecipeError(
            f"{problems[0]}; make {folder} again" + (f" ({len(problems) - 1} more)" if problems[1:] else "")
        )
    return read_manifest(folder)


def check_inputs(folder: Path, paths: Mapping[str, Path]) -> None:
    """Raises RecipeError where something that `folder` was made from is no longer what it was."""
    made_from = read_manifest(folder)["inputs"]
    for name, found in hash_inputs(paths).items():
        if found != made_from.get(name):
            raise RecipeError(
                f"{paths[name]} is not the {name} that {folder} was made from (its hash differs); "
                "put that one back, or make the run again"
            )


def completed(folder: Path, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The manifest, if `folder` was made by this stage from these inputs with this config and is intact; else None."""
    if not (Path(folder) / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    same = manifest["stage"] == stage and manifest["config"] == dict(config) and manifest["inputs"] == dict(inputs)
    if not same or verify(folder):
        return None
    if manifest.get("code") != code_sha256():
        say(f"{folder} was made by another version of this code; kept, since its inputs and config are the same")
    return manifest


def differences(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key: this != that` for every leaf in which two manifests differ."""
    for key in sorted({*one, *two}):
        left, right = one.get(key), two.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}: {json.dumps(left, ensure_ascii=False)} != {json.dumps(right, ensure_ascii=False)}"
