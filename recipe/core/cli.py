"""What all commands share: flags, exit codes, errors in one sentence."""

import argparse
import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.core import config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.run import Run

INTERRUPTED = 130  # 128 + SIGINT, as in a shell


def build_parser(stage: str, description: str, example: str, fields: Sequence[str] = ("",)) -> argparse.ArgumentParser:
    """The argument parser of a stage: --config, --set, --dry-run, --json.

    Its help ends with `example` and the config fields that the stage reads: `fields` are dotted names or sections,
    all fields by default, none if empty.
    """
    known = [f"  {line}" for line in config.describe(fields)] if fields else []
    heading = ["", "config fields that this command reads (for --set and the config file):"] if known else []
    out = argparse.ArgumentParser(
        prog=f"python -m recipe.{stage}",
        description=description,
        epilog="\n".join(["example:", f"  {example}", *heading, *known]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--config", type=Path, metavar="FILE", help="a run's TOML; see recipe/configs/ for examples")
    out.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one field, as in --set train.epochs=3; repeatable",
    )
    out.add_argument("--dry-run", action="store_true", help="print what would be done and touch nothing")
    out.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return out


def load_config(args: argparse.Namespace, flags: Mapping[str, Any] | None = None) -> config.Config:
    """The run's config from --config, then --set, then the stage's own flags (None: not given)."""
    overrides = config.parse_set(args.set)
    overrides.update({key: value for key, value in (flags or {}).items() if value is not None})
    return config.load(args.config, overrides)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add --run, for the stages that use a finished run."""
    parser.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        help="a run's folder, as runs/demo/latest; default: the latest of --config",
    )


def load_run(args: argparse.Namespace) -> tuple[config.Config, Run]:
    """The run of --run, or the latest run of --config, and its resolved config with --set applied.

    Raises UsageError if both or neither are given, or if there is no such run.
    """
    if bool(args.run) == bool(args.config):
        raise UsageError(
            "pass either --run DIR or --config FILE (a run has its own config.toml; override its fields with --set)"
        )
    run = Run.open(args.run or Run.latest(config.load(args.config)))
    return run.config(config.parse_set(args.set)), run


def entry(main: Callable[[], int]) -> int:
    """Run a command; a failure becomes one sentence on stderr and an exit code: 1 failed, 2 usage, 3 unfit."""
    try:
        return main()
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written is left; the same command goes on or starts again", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" at {error.filename}" if error.filename else ""
        what = (
            "no space is left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "writing is not allowed"
        )
        print(
            f"error: {what}{where}: free some or name another place, then run the same command again", file=sys.stderr
        )
        return 1
