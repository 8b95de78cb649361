"""Audit: is this environment the locked one, file for file, and does every library have code for the GPU?

Packages are compared with the lock, files with the RECORD of their wheel, and the device code of shared libraries with
the architecture in docker/pins.toml.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe.core.cli import entry
from recipe.core.text import printable, show, table
from recipe.environment.audit import Package, audit, listed
from recipe.environment.locks import DOCKER, Pins, find_site, read_lock, read_pins


def text(packages: list[Package], pins: Pins, colour: bool) -> str:
    """The audit for a person: a line per package, the libraries that were skipped and why, problems, the verdict."""
    rows = [("package", "locked", "installed", "files", "SASS", "PTX", "verdict"), *map(_row, packages)]
    lines = table(rows).splitlines()
    bad = [package for package in packages if package.problems]
    wrong = [line for package in bad for line in _problems(package)]
    if bad:
        verdict = f"DRIFT in {len(bad)} of {len(packages)} packages: {', '.join(package.name for package in bad)}"
    else:
        count = f"{len(packages)} packages, {sum(package.files for package in packages)} files"
        verdict = f"CLEAN: {count} as locked, sm_{pins.required_sm} in every CUDA library that is loaded"
    lines = [printable(line) for line in [*lines, "", *_passed_over(packages), *wrong, verdict]]
    if colour:
        lines[2 : len(rows) + 1] = map(
            _coloured, lines[2 : len(rows) + 1], (not package.problems for package in packages)
        )
        lines[-1] = _coloured(lines[-1], not bad)
    return "\n".join(lines)


def _row(package: Package) -> tuple[str, ...]:
    files = f"{package.differing} of {package.files} differ" if package.differing else str(package.files)
    verdict = package.verdict + (f" ({package.role})" if package.role else "")
    code = [listed(package.architectures(kind)) for kind in ("sass", "ptx")]
    return package.name, package.locked or "-", package.installed or "-", files, *code, verdict


def _problems(package: Package, most: int = 5) -> Iterator[str]:
    for verdict, what in package.problems[:most]:
        yield f"{package.name}: {verdict}: {what}"
    if len(package.problems) > most:
        yield f"{package.name}: {len(package.problems) - most} more, all of them with --json"


def _passed_over(packages: list[Package]) -> Iterator[str]:
    """Libraries that need no sm_60 code because they never run on the GPU."""
    reasons = {"other CUDA": "other CUDA, never loaded", "stub": "one object that nothing registers, never loaded"}
    for package in packages:
        for standing, reason in reasons.items():
            names = [Path(library.path).name for library in package.libraries if library.standing == standing]
            if names:
                yield f"{package.name}: {reason}: {', '.join(names)}"


def _coloured(line: str, good: bool) -> str:
    return f"\x1b[{32 if good else 31}m{line}\x1b[0m"


def as_json(packages: list[Package], pins: Pins, site: Path) -> dict[str, Any]:
    """The same audit as plain values, every library with its counts."""
    return {
        "verdict": "drift" if any(package.problems for package in packages) else "clean",
        "site_packages": str(site),
        **asdict(pins),
        "packages": [
            asdict(package)
            | {"verdict": package.verdict, "differing": package.differing}
            | {kind: package.architectures(kind) for kind in ("sass", "ptx")}
            for package in packages
        ],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipe.pins",
        description="Is this environment the locked one, and does every library have code for the GPU? Exit 1: no.",
        epilog="example: python -m recipe.pins --prefix .venv",
    )
    parser.add_argument("--prefix", type=Path, metavar="DIR", help="another environment, or its site-packages folder")
    parser.add_argument("--lock", type=Path, metavar="FILE", default=DOCKER / "requirements.lock")
    parser.add_argument("--dev-lock", type=Path, metavar="FILE", default=DOCKER / "requirements-dev.lock")
    parser.add_argument("--pins", type=Path, metavar="FILE", default=DOCKER / "pins.toml")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    args = parser.parse_args(argv)
    pins, site = read_pins(args.pins), find_site(args.prefix)
    dev = read_lock(args.dev_lock) if args.dev_lock.is_file() else {}
    packages = audit(site, pins, read_lock(args.lock), dev)
    show(as_json(packages, pins, site), text(packages, pins, colour=sys.stdout.isatty()), args.json)
    return 1 if any(package.problems for package in packages) else 0


if __name__ == "__main__":
    sys.exit(entry(main))
