"""Verify artefacts, trace them back to raw files, say in what two differ; replay a run, or bundle it for a reviewer."""

import argparse
import sys
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.cli import add_run, entry, load_run
from recipe.core.lineage import ORDER, PARTS, compare, trace, verify_all
from recipe.core.manifest import differences, read_manifest
from recipe.core.text import show, table
from recipe.proof.bundle import bundle
from recipe.proof.replay import describe, replay


def run_verify(folders: list[Path], deep: bool, config: Path | None) -> tuple[list[str], list[str]]:
    """(problems, lines for a person) of artefacts; `deep`: of their inputs, too."""
    problems, lines = [], []
    settings = configs.load(config) if config else None
    for folder in folders:
        found = verify_all(folder)
        lines += found or [f"{folder}: intact, {len(read_manifest(folder)['outputs'])} files"]
        problems += found
        if not deep:
            continue
        rows = [["artefact", "input", "found at", ""]]
        checked: set[Path] = {folder}
        for link in trace(folder, settings):
            state = "matches" if link.matches else "altered" if link.path else "not found"
            rows.append([str(link.owner), link.name, str(link.path or "-"), state])
            if not link.matches:
                problems.append(f"{link.name} of {link.owner}: {state}")
            elif (
                link.path
                and link.path.is_dir()
                and link.path not in checked
                and (link.path / "manifest.json").is_file()
            ):
                checked.add(link.path)
                inner = verify_all(link.path)
                problems += inner
                lines += inner
        lines.append(table(rows))
    return problems, lines


def run_diff(one: Path, two: Path) -> tuple[dict[str, Any], list[str]]:
    """(differences as plain values, lines for a person) between two artefacts."""
    manifests = read_manifest(one), read_manifest(two)
    found = compare(*manifests)
    results = [line for line in differences(*manifests) if line.startswith(("outputs.", "results.", "stage:"))]
    results = [line for line in results if not line.startswith(ORDER)]
    if not found and not results:
        return {"parts": {}, "results": []}, ["no difference"]
    rows = [["part", "", "can it change a result?"]]
    rows += [
        [word, "differs" if part in found else "same", risk if part in found else ""]
        for part, (word, risk) in PARTS.items()
    ]
    rows.append(["results", "differ" if results else "same", ""])
    lines = [table(rows), ""]
    return {"parts": found, "results": results}, [*lines, *(line for part in found.values() for line in part), *results]


def run_replay(args: argparse.Namespace) -> dict[str, Any]:
    """The result of a replay (`recipe.proof.replay.judge`)."""
    config, opened = load_run(args)
    folder = args.into or Path(config.runs) / "replays" / f"{config.name}-{opened.folder.name}"
    return replay(opened, config, folder)


def run_bundle(args: argparse.Namespace) -> dict[str, Any]:
    """The archive's path, sha256 and number of files."""
    config, opened = load_run(args)
    output = args.output or opened.folder.with_name(f"{opened.folder.name}.zip")
    return bundle(opened, config, output, args.image)


def add_bundle(commands: Any) -> None:
    one = commands.add_parser("bundle", help="pack a run for a reviewer: files, manifests, SBOM, in-toto, RO-Crate")
    add_source(one)
    one.add_argument("--output", type=Path, metavar="FILE", help="the archive; default: beside the run, <id>.zip")
    one.add_argument("--image", default="", metavar="DIGEST", help="digest of the image, if the run does not name it")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add --run, --config and --set."""
    add_run(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="the config whose latest run is meant")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another path, or another field that changes no result; repeatable",
    )


def add_replay(commands: Any) -> None:
    again = commands.add_parser("replay", help="rebuild corpus and run in a clean folder, and compare bit for bit")
    add_source(again)
    again.add_argument(
        "--into", type=Path, metavar="DIR", help="the clean folder; default: runs/replays/<name>-<id>; it is kept"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipe.provenance",
        description=__doc__,
        epilog="example: python -m recipe.provenance verify runs/demo/latest --deep",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("verify", help="compare every file with its hash, and name files without one")
    check.add_argument("folder", type=Path, nargs="+")
    check.add_argument("--deep", action="store_true", help="also trace the inputs back to raw files")
    check.add_argument(
        "--config", type=Path, metavar="FILE", help="where the inputs are; a run has its own config.toml"
    )
    diff = commands.add_parser("diff", help="say in what two artefacts differ, and what can change a result")
    diff.add_argument("one", type=Path)
    diff.add_argument("two", type=Path)
    add_replay(commands)
    add_bundle(commands)
    args = parser.parse_args(argv)
    if args.command == "replay":
        result = run_replay(args)
        show(result, describe(result), args.json)
        return 1 if result["verdict"] == "outside" else 0
    if args.command == "bundle":
        result = run_bundle(args)
        text = f"{result['bundle']}: {result['files']} files, sha256 {result['sha256']}"
        show(result, f"{text}\nverify it anywhere: python {result['bundle']}", args.json)
        return 0
    if args.command == "diff":
        result, lines = run_diff(args.one, args.two)
        show(result, "\n".join(lines), args.json)
        return 1 if result["parts"] or result["results"] else 0
    problems, lines = run_verify(args.folder, args.deep, args.config)
    show({"intact": not problems, "problems": problems}, "\n".join(lines), args.json)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(entry(main))
