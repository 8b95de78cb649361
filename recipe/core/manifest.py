"""Every artefact has a manifest.json: inputs, outputs, config, code, environment, hardware, results.

A stage is done if its manifest matches *and every hash in it matches*. A manifest has no time of day, host name or
absolute path, so the same work in another place leaves the same bytes. It ends with a sha256 of its own content.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, atomic_file, digest, list_files, remove_leftovers, sha256
from recipe.core.text import printable, say, snippet
from recipe.core.versions import code_sha256, environment, hardware

OWN_DIGEST = "sha256"  # of the manifest without this key


def write_manifest(
    folder: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    results: Mapping[str, Any],
    only: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Hash the files of `folder` (all, or those under the names in `only`) and write its manifest.json.

    `inputs`: name -> sha256 (`hash_inputs`); `config` and `results` are plain JSON values. Returns the manifest.
    """
    manifest = build_manifest(stage, config, inputs, results, hash_files(folder, only))
    save_manifest(folder / MANIFEST, manifest)
    return manifest


def hash_files(folder: Path, only: tuple[str, ...] | None = None) -> dict[str, dict[str, Any]]:
    """Relative name -> sha256 and bytes of the files of `folder`, or of those under the names in `only`."""
    return {
        file.relative_to(folder).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in list_files(folder)
        if file.name != MANIFEST or file.parent != folder
        if only is None or file.relative_to(folder).parts[0] in only
    }


def build_manifest(
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    results: Mapping[str, Any],
    outputs: Mapping[str, Any],
) -> dict[str, Any]:
    """A manifest as plain values, with this code, environment and hardware."""
    return {
        "stage": stage,
        "config": dict(config),
        "inputs": dict(inputs),
        "outputs": dict(outputs),
        "code": code_sha256(),
        "environment": environment(),
        "hardware": hardware(),
        "results": dict(results),
    }


def save_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest as JSON with its own digest, whole or not at all."""
    with atomic_file(path) as file:
        json.dump({**manifest, OWN_DIGEST: digest(manifest)}, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")


def hash_inputs(paths: Mapping[str, Path]) -> dict[str, str]:
    """Name -> sha256 of each input: of a file's bytes, or of a folder's outputs by its manifest, else of its files."""
    return {name: _hash_input(Path(path)) for name, path in paths.items()}


def _hash_input(path: Path) -> str:
    if not path.exists():
        raise RecipeError(f"{path} does not exist: correct the path, or run the stage that makes it first")
    if path.is_file():
        return sha256(path)
    if (path / MANIFEST).is_file():
        return digest(read_manifest(path)["outputs"])
    return digest({file.relative_to(path).as_posix(): sha256(file) for file in list_files(path)})


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """The manifest of an artefact. Raises RecipeError if there is none or it is damaged."""
    path = Path(folder) / name
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not Path(folder).exists():
            raise RecipeError(
                f"{folder} does not exist: correct the path, or run the stage that makes it first"
            ) from None
        raise RecipeError(
            f"{folder} has no {name}: no stage of this recipe made it, or that stage did not finish"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is damaged ({snippet(error)}); re-create {folder}") from None
    if not _is_manifest(manifest):
        raise RecipeError(f"{path} is not a manifest of this recipe; re-create {folder}")
    expected = manifest.pop(OWN_DIGEST, None)  # None: of an older version
    if expected is not None and expected != digest(manifest):
        raise RecipeError(f"{path} was altered: its content differs from its own digest; re-create {folder}")
    return manifest


def _is_manifest(value: Any) -> bool:
    """Whether a JSON value has the shape that every reader relies on."""
    if not isinstance(value, dict) or not isinstance(value.get("stage"), str):
        return False
    if not all(isinstance(value.get(key), dict) for key in ("config", "inputs", "outputs")):
        return False
    if not isinstance(value.get("results", {}), dict) or not isinstance(value.get("environment", {}), dict):
        return False
    return all(_is_output(name, entry) for name, entry in value["outputs"].items())


def _is_output(name: str, entry: Any) -> bool:
    """A hash and a size of a file inside the folder."""
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\0" not in name
    fields = isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("bytes")) is int
    return bool(inside and fields)


def verify(folder: Path, skip_suffix: str = "") -> list[str]:
    """What no longer matches the manifest: one sentence per missing or altered file. Empty: intact.

    Files with `skip_suffix` are not hashed.
    """
    problems: list[str] = []
    for name, expected in read_manifest(folder)["outputs"].items():
        if not skip_suffix or not name.endswith(skip_suffix):
            problems += check_file(Path(folder) / name, expected)
    return problems


def check_file(file: Path, expected: Mapping[str, Any]) -> Iterator[str]:
    """One sentence if `file` is missing or differs from its entry in a manifest."""
    if not file.is_file():
        yield f"{printable(str(file))} is missing"
    elif file.stat().st_size != expected["bytes"]:
        size = file.stat().st_size
        yield f"{printable(str(file))} has {size} bytes, its manifest says {expected['bytes']}"
    elif sha256(file) != expected["sha256"]:
        yield f"{printable(str(file))} was altered: its sha256 differs from the manifest"


def check_intact(folder: Path, skip_suffix: str = "") -> dict[str, Any]:
    """The manifest of an intact artefact (`verify`). Raises RecipeError with the first problem."""
    problems = verify(folder, skip_suffix)
    if problems:
        more = f" ({len(problems) - 1} more)" if problems[1:] else ""
        raise RecipeError(f"{problems[0]}; re-create {folder}{more}")
    return read_manifest(folder)


def check_inputs(folder: Path, paths: Mapping[str, Path]) -> None:
    """Raises RecipeError if an input of `folder` has changed since `folder` was made."""
    recorded = read_manifest(folder)["inputs"]
    for name, found in hash_inputs(paths).items():
        if found != recorded.get(name):
            raise RecipeError(
                f"{paths[name]} is not the {name} that {folder} was made from (its hash differs); "
                "restore it, or run the stage again"
            )


def completed(folder: Path, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The manifest if this stage made `folder` from these inputs with this config and it is intact; else None."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except RecipeError as error:
        say(f"{error}: the stage runs again")
        return None
    same = manifest["stage"] == stage and manifest["config"] == dict(config) and manifest["inputs"] == dict(inputs)
    if not same or verify(folder):
        return None
    if manifest.get("code") != code_sha256():
        say(f"{folder} was made by another version of this code; it is kept, since its inputs and config are the same")
    remove_leftovers(folder)
    return manifest


def differences(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key: this != that` for every leaf in which two manifests differ."""
    for key in sorted({*one, *two}):
        left, right = one.get(key), two.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}: {json.dumps(left, ensure_ascii=False)} != {json.dumps(right, ensure_ascii=False)}"
