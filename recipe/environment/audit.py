"""An environment held against its lock: packages by version, files by their wheel's RECORD, libraries by their code.

RECORD is what the installer left: it shows drift, not a forger's care.
"""

import base64
import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from recipe.core.text import progress
from recipe.environment import fatbin
from recipe.environment.locks import Pins, same_version

INSTALLERS = {"pip", "setuptools", "wheel"}  # what `python -m venv` brings
UNOWNED = "(no package)"  # files in site-packages that no RECORD lists
# Left by the installer or the interpreter, so never the wheel's.
NOT_THE_WHEELS = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "_virtualenv.py", "_virtualenv.pth"}
SHARED_LIBRARY = re.compile(r"\.so(\.\d+)*$")
# bitsandbytes ships one library per CUDA version and loads the one of torch's; below sm_75 the one without cuBLASLt.
PER_CUDA = re.compile(r"libbitsandbytes_cuda(\d+)(_nocublaslt)?\.so$")


@dataclass(frozen=True)
class Library:
    """A shared library with device code; `standing` is loaded, stub or other."""

    path: str
    code: fatbin.DeviceCode
    standing: str


@dataclass
class Package:
    """One line of the audit. `problems` are pairs of verdict and sentence; the first names the package's verdict."""

    name: str
    locked: str = ""
    installed: str = ""
    role: str = ""  # dev: only in the dev lock; installer: pip and its like, not locked
    files: int = 0
    libraries: list[Library] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return self.problems[0][0] if self.problems else "ok"

    @property
    def differing(self) -> int:
        return sum(verdict == "altered" for verdict, _ in self.problems)

    def architectures(self, kind: str) -> list[int]:
        """Of SASS or PTX, over the libraries that are loaded."""
        loaded = (getattr(library.code, kind) for library in self.libraries if library.standing == "loaded")
        return sorted({architecture for found in loaded for architecture in found})


@dataclass(frozen=True)
class File:
    """One file to look at: `recorded` is RECORD's "sha256=..." or empty."""

    package: Package
    name: str
    recorded: str


def audit(site: Path, pins: Pins, lock: dict[str, str], dev: dict[str, str]) -> list[Package]:
    """Every locked and every installed package of a site-packages folder, with what is wrong about it."""
    packages: list[Package] = []
    files: list[File] = []
    for folder in sorted([*site.glob("*.dist-info"), *site.glob("*.egg-info")]):
        package = _package(folder, lock, dev)
        packages.append(package)
        files += _recorded(site, folder, package)
    seen = {package.name for package in packages}
    for name in sorted(lock.keys() - seen):
        packages.append(Package(name, lock[name], problems=[("missing", f"{lock[name]} is locked, none is installed")]))
    stray = Package(UNOWNED)
    files += _unowned(site, files, stray)
    if stray.files:
        packages.append(stray)
    _look(site, files, pins)
    for package in packages:
        _judge(package, pins)
    return sorted(packages, key=lambda package: package.name)


def _package(folder: Path, lock: dict[str, str], dev: dict[str, str]) -> Package:
    """What is installed, held against the locks."""
    stem, version, *_ = [*folder.stem.split("-"), ""]  # name-version.dist-info: METADATA itself may be damaged
    name = canonicalize_name(stem)
    package = Package(name, lock.get(name, dev.get(name, "")), version)
    if name not in lock:
        package.role = "dev" if name in dev else "installer" if name in INSTALLERS else ""
    if not package.locked and not package.role:
        package.problems.append(("extra", f"{package.installed} is installed and not in the lock"))
    elif package.locked and not same_version(package.locked, package.installed):
        package.problems.append(("wrong version", f"{package.locked} is locked, {package.installed} is installed"))
    return package


def _recorded(site: Path, folder: Path, package: Package) -> Iterator[File]:
    """The files that RECORD lists, without those that no wheel brings."""
    try:
        rows = list(csv.reader((folder / "RECORD").read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error):
        package.problems.append(("altered", f"{folder.name} has no readable RECORD, so no file could be checked"))
        return
    for name, recorded, *_ in (row for row in rows if len(row) >= 2):
        if name.endswith(".pyc") or (Path(name).parent.name == folder.name and Path(name).name in NOT_THE_WHEELS):
            continue
        package.files += 1
        yield File(package, _scripts_of_target(site, name), recorded)


def _scripts_of_target(site: Path, name: str) -> str:
    """The path of a recorded file: `pip install --target` moves `../../bin` into the folder and does not record it."""
    head, separator, tail = name.partition("/bin/")
    if separator and set(head.split("/")) == {".."} and not (site / name).exists() and (site / "bin" / tail).exists():
        return f"bin/{tail}"
    return name


def _unowned(site: Path, files: list[File], package: Package) -> Iterator[File]:
    """Files that lie in site-packages though no package brought them: an import away from being run."""
    owned = {os.path.normpath(file.name) for file in files}
    for folder, folders, names in os.walk(site):
        folders[:] = [name for name in folders if name != "__pycache__"]
        inside = os.path.relpath(folder, site)
        for name in names:
            path = os.path.normpath(f"{inside}/{name}")
            if path not in owned and not name.endswith(".pyc") and name not in NOT_THE_WHEELS:
                package.files += 1
                package.problems.append(("extra", f"{path} belongs to no package"))
                yield File(package, path, "")


def _look(site: Path, files: list[File], pins: Pins) -> None:
    """Hash every file and read every library, on all cores: hashing releases the interpreter's lock."""
    sizes = {file.name: _size(site / file.name) for file in files}
    files = sorted(files, key=lambda file: -sizes[file.name])  # the giants first, so that the cores end together
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(total=sum(sizes[file.name] for file in files), unit="B", unit_scale=True, desc="audit") as bar,
    ):
        for file, (problem, code) in zip(files, pool.map(lambda file: _examine(site, file), files), strict=True):
            bar.update(sizes[file.name])
            if problem:
                file.package.problems.append(problem)
            if code.sass or code.ptx:
                file.package.libraries.append(Library(file.name, code, _standing(file.name, code, pins)))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _examine(site: Path, file: File) -> tuple[tuple[str, str] | None, fatbin.DeviceCode]:
    """What is wrong with a file, as a pair of verdict and sentence, and its device code."""
    path, nothing = site / file.name, fatbin.DeviceCode()
    if not path.is_file():
        return ("altered", f"{file.name} is missing"), nothing
    problem = None
    if file.recorded and not _has_hash(path, file.recorded):
        problem = ("altered", f"{file.name} is not the file that its wheel brought")
    if not SHARED_LIBRARY.search(file.name):
        return problem, nothing
    try:
        return problem, fatbin.read(path)
    except ValueError as error:
        return problem or ("unreadable", str(error)), nothing


def _has_hash(path: Path, recorded: str) -> bool:
    """RECORD writes a hash as algorithm=digest, in urlsafe base64 without padding (PEP 427)."""
    algorithm, _, expected = recorded.partition("=")
    if algorithm not in hashlib.algorithms_guaranteed:
        return False
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, algorithm).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == expected


def _standing(name: str, code: fatbin.DeviceCode, pins: Pins) -> str:
    per_cuda = PER_CUDA.search(name)
    if per_cuda and per_cuda[1] != pins.cuda.replace(".", ""):
        return "other CUDA"
    # The device linker leaves one object without a kernel in libraries with no device code (libnvblas, libcufftw).
    objects = sum(code.sass.values()) + sum(code.ptx.values())
    return "stub" if objects == 1 and not code.registered else "loaded"


def _judge(package: Package, pins: Pins) -> None:
    """Every loaded library must have SASS for the GPU; PTX would have to be compiled when it is loaded."""
    verdict = f"no sm_{pins.required_sm}"
    package.libraries.sort(key=lambda library: library.path)
    for library in package.libraries:
        if library.standing == "loaded" and pins.required_sm not in library.code.sass:
            jit = [architecture for architecture in library.code.ptx if architecture <= pins.required_sm]
            hint = f"; the driver could compile its PTX for {listed(jit)}, JIT only" if jit else ""
            package.problems.append((verdict, f"{library.path} has SASS for {listed(library.code.sass)}{hint}"))
    names = [Path(library.path).name for library in package.libraries]
    if any(PER_CUDA.search(name) for name in names) and pins.bitsandbytes not in names:
        package.problems.append((verdict, f"{pins.bitsandbytes} is the library that CUDA {pins.cuda} loads: not there"))


def listed(architectures: Iterable[int]) -> str:
    """As a table shows them."""
    return " ".join(map(str, architectures)) or "-"
