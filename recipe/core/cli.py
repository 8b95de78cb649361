"""What all commands share: flags, exit codes, errors in one sentence."""

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.core import config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.run import Run
from recipe.core.text import close_bars, open_standard_streams, print_any_text, say, snippet

INTERRUPTED = 130  # 128 + SIGINT, as in a shell


# Command -> the config fields and sections that it reads, for its --help. A command that is not here shows none.
_PLANNED = (
    "name",
    "base.path",
    "base.precision",
    "base.split",
    "corpus.path",
    "corpus.max_length",
    "lora",
    "train.micro_batch_tokens",
    "train.optimizer",
    "train.matmul_accumulation",
    "train.recompute",
)
_RUN = ("name", "runs", "base.path", "base.precision", "base.split", "corpus.template")
FIELDS: dict[str, tuple[str, ...]] = {
    "fetch": ("base.source", "corpus.source"),
    "convert": ("base.source", "base.path", "base.dtype"),
    "corpus": ("base.path", "corpus"),
    "doctor": (*_PLANNED, "runs", "base.dtype", "train.keep_checkpoints"),
    "plan": (*_PLANNED, "train.epochs", "train.gradient_accumulation_steps"),
    "rehearse": (*_PLANNED, "runs", "train.epochs", "train.seed"),
    "train": (*_RUN, "corpus.path", "lora", "train"),
    "evaluate": (*_RUN, "corpus.path", "corpus.identity_name", "train.micro_batch_tokens", "evaluate"),
    "merge": (*_RUN, "corpus.path"),
    "chat": _RUN,
    "serve": _RUN,
    "report": ("name", "runs"),
}


def build_parser(
    stage: str, description: str, example: str, fields: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """The argument parser of a stage: --config, --set, --dry-run, --json.

    Its help ends with `example` and the config fields that the stage reads: `fields`, by default those of `FIELDS`.
    """
    shown = FIELDS.get(stage, ()) if fields is None else fields
    known = [f"  {line}" for line in config.describe(shown)] if shown else []
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
    """Run a command; a failure becomes one sentence on stderr and an exit code: 1 failed, 2 usage, 3 unfit.

    Only defects of the recipe itself end in a traceback.
    """
    open_standard_streams()
    print_any_text()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set while the modules loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main()
    except RecipeError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        close_bars()
        say("\ninterrupted: no partial output was left; run the same command again to resume")
        return INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # whoever read the output closed it: nothing can be said there
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        reason = explain_failure(error)
        if not reason:
            raise
        return _fail(reason, 1)


def _fail(message: str, code: int) -> int:
    close_bars()
    say(f"error: {message}", error=True)
    return code


# What libraries raise for a full disk or memory, by their own types: safetensors, tokenizers, torch.
FOREIGN = (
    (r"No space left on device|unexpected pos \d+ vs", errno.ENOSPC),
    (
        r"[Cc]annot allocate memory|can't allocate memory|out of memory|bad allocation|failed to map segment from",
        errno.ENOMEM,
    ),
)
HINTS = {
    errno.ENOSPC: ("no space is left on the disk", "free some or choose another path, then run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some or choose another path, then run the same command again"),
    errno.EACCES: ("permission denied", "fix permissions or choose another path"),
    errno.EPERM: ("not permitted by the file system", "choose a path on another file system"),
    errno.EROFS: ("the file system is read-only", "choose another path"),
    errno.ENOENT: ("file not found", "check the path"),
    errno.ENOMEM: ("out of memory", "stop other programs or use smaller settings (`make plan` helps for training)"),
}


def explain_failure(error: BaseException) -> str:
    """A sentence for an error of the system or of a library that ran out of space; empty for any other error."""
    if isinstance(error, MemoryError):
        return _sentence(errno.ENOMEM, "")
    if isinstance(error, OSError):
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        return _sentence(error.errno, paths[0] if paths else "", str(error))
    for pattern, number in FOREIGN:
        if re.search(pattern, str(error)):
            return _sentence(number, "")
    if type(error).__name__ == "SafetensorError":
        return f"{snippet(error)}: the file is damaged or cannot be written; check the disk and re-create the file"
    return ""


def _sentence(number: int | None, path: str, message: str = "") -> str:
    reason = os.strerror(number).lower() if number else snippet(message) or "the system reported an error"
    what, hint = HINTS.get(number or 0, (reason, "check the path and the disk, then run the same command again"))
    return f"{what}{f': {snippet(path, 300)}' if path else ''}; {hint}"
