"""Verify a bundle: `python BUNDLE.zip`, or `python __main__.py` in the unpacked folder. Needs Python 3.9 alone.

Every file against SHA256SUMS and nothing beside them; the run's files against its own manifests; the run's inputs
against the manifests of its base and corpus; the statements (in-toto, RO-Crate, CycloneDX) against the files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

SUMS = "SHA256SUMS"
Files = dict[str, Callable[[], IO[Any]]]


def list_files(place: Path) -> Files:
    """Name -> a function that opens the file, of a zip file or a folder."""
    if zipfile.is_zipfile(str(place)):
        archive = zipfile.ZipFile(str(place))
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            sys.exit(f"error: {twice[0]!r} is in the archive twice: get the bundle again")
        return {name: functools.partial(archive.open, name) for name in names}
    files = [file for file in Path(place).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {file.relative_to(place).as_posix(): functools.partial(file.open, "rb") for file in files}


def hash_file(open_file: Callable[[], IO[Any]]) -> str:
    found = hashlib.sha256()
    with open_file() as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def problems(files: Files) -> Iterator[str]:
    """One sentence for each thing that does not match."""
    found = {name: hash_file(open_file) for name, open_file in files.items()}
    lines = (line.partition("  ") for line in read(files, SUMS).splitlines())
    listed = {name: value for value, _, name in lines}
    for name in sorted({*found, *listed} - {SUMS}):
        if name not in listed:
            yield f"{name!r} is in no list"
        elif name not in found:
            yield f"{name!r} is missing"
        elif found[name] != listed[name]:
            yield f"{name!r} was altered"
    run = json.loads(read(files, "run/manifest.json"))
    records = json.loads(read(files, "run/records.json"))["outputs"]
    outputs = {name: entry for name, entry in records.items() if f"run/{name}" in files}  # private ones are left out
    for name, entry in {**outputs, **run["outputs"]}.items():
        if found.get(f"run/{name}") != entry["sha256"]:
            yield f"run/{name} is not the file of the run's manifest"
    if found.get("environment/requirements.lock") != run["environment"]["lock"]:
        yield "environment/requirements.lock is not the lock that the run was made with"
    for name, expected in run["inputs"].items():
        if f"{name}/manifest.json" in files:
            outputs = json.loads(read(files, f"{name}/manifest.json"))["outputs"]
            if hashlib.sha256(json.dumps(outputs, sort_keys=True, ensure_ascii=False).encode()).hexdigest() != expected:
                yield f"{name}/manifest.json is not that of the {name} that the run was made from"
    for statement, name, expected in statements(files):
        if found.get(name) != expected:
            yield f"{statement} says of {name!r} what is not true"


def statements(files: Files) -> Iterator[tuple[str, str, str]]:
    """(statement, file, its sha256 according to the statement)."""
    for subject in json.loads(read(files, "statement.intoto.json"))["subject"]:
        yield "statement.intoto.json", subject["name"], subject["digest"]["sha256"]
    for entity in json.loads(read(files, "ro-crate-metadata.json"))["@graph"]:
        if entity["@type"] == "File":
            yield "ro-crate-metadata.json", entity["@id"], entity["sha256"]
    model = json.loads(read(files, "sbom.cdx.json"))["metadata"]["component"]
    yield "sbom.cdx.json", "run/adapter/adapter_model.safetensors", model["hashes"][0]["content"]


def read(files: Files, name: str) -> str:
    if name not in files:
        sys.exit(f"error: {name} is missing: get the bundle again")
    with files[name]() as file:
        return file.read().decode("utf-8")


def main() -> int:
    place = Path(sys.argv[1] if sys.argv[1:] else sys.path[0] or ".")
    files = list_files(place)
    found = list(problems(files))
    print("\n".join(found) or f"intact: {len(files)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
