"""Check artefacts against their manifests."""

import argparse
import sys
from pathlib import Path

from recipe.core.cli import entry
from recipe.core.files import list_unlisted
from recipe.core.manifest import differences, read_manifest, verify
from recipe.core.text import printable

WEIGHTS = ("fetch", "convert", "delta", "merge", "quantise")  # stages whose folders hold nothing but their outputs


def unlisted(folder: Path) -> list[str]:
    """Files that someone put beside weights: this recipe does not read them, other programs do."""
    if read_manifest(folder)["stage"] not in WEIGHTS:
        return []
    return [
        f"{folder / name} is not listed in the manifest: remove it" for name in map(printable, list_unlisted(folder))
    ]


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
        lines = list(differences(read_manifest(args.one), read_manifest(args.two)))
        print("\n".join(lines) or "no difference")
        return 1 if lines else 0
    problems = 0
    for folder in args.folder:
        found = [*verify(folder), *unlisted(folder)]
        problems += len(found)
        print("\n".join(found) or f"{folder}: intact, {len(read_manifest(folder)['outputs'])} files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(entry(main))
