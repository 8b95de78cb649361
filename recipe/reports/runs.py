"""All runs of a folder as one table: state, settings that differ, losses, hours, size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.errors import RecipeError
from recipe.core.files import file_size, is_locked
from recipe.core.run import Run
from recipe.core.text import snippet
from recipe.reports.run_view import read_evaluation, read_metrics

HEADING = ["run", "state", "step", "loss before", "loss after", "hours", "size", "settings that differ"]


@dataclass(frozen=True)
class RunRow:
    """One run of the table. Losses are of the validation set; `hours` of the last process that trained it."""

    name: str
    state: str
    step: int | None = None
    before: float | None = None
    after: float | None = None
    hours: float | None = None
    bytes: int = 0
    settings: Mapping[str, str] | None = None  # that not all runs of this name have


def list_runs(folder: Path) -> list[RunRow]:
    """Every run of the folder, by name, the oldest first. Raises RecipeError if there is none."""
    found = sorted(
        (path.parent for path in Path(folder).glob("*/*/config.toml") if not path.parent.is_symlink()),
        key=lambda path: (path.parent.name, path.joinpath("config.toml").stat().st_mtime, path.name),
    )
    if not found:
        raise RecipeError(f"{folder} holds no runs: train one first, or name the folder with --set runs=DIR")
    settings = [_read_settings(Run(path)) for path in found]
    rows = []
    for path, mine in zip(found, settings, strict=True):
        others = [each for place, each in zip(found, settings, strict=True) if place.parent == path.parent]
        rows.append(_read_row(Run(path), mine, others))
    return rows


def _read_settings(run: Run) -> dict[str, str] | None:
    """Dotted key -> value of what can change a result; None if this version cannot read the config."""
    try:
        return dict(_flatten(configs.hashed(run.config())))
    except RecipeError:
        return None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _read_row(run: Run, mine: dict[str, str] | None, others: Sequence[dict[str, str] | None]) -> RunRow:
    name = f"{run.folder.parent.name}/{run.folder.name}"
    if mine is None:
        return RunRow(name, "config unreadable", bytes=file_size(run.folder))
    try:
        evaluation, state = read_evaluation(run), ""
    except RecipeError:
        evaluation, state = {}, "evaluation altered"
    metrics = read_metrics(run.metrics)
    known = [each for each in others if each is not None]
    different = {key: value for key, value in mine.items() if any(each.get(key) != value for each in known)}
    losses = [evaluation.get(key, {}).get("loss") for key in ("base", "tuned")]
    validations = [row["eval_loss"] for row in metrics if isinstance(row.get("eval_loss"), int | float)]
    return RunRow(
        name,
        state or _describe(run, bool(evaluation)),
        max((row.get("step", 0) for row in metrics), default=None),
        losses[0],
        losses[1] if losses[1] is not None else validations[-1] if validations else None,
        _read_hours(run),
        file_size(run.folder),
        different,
    )


def _describe(run: Run, evaluated: bool) -> str:
    if run.manifest_file.is_file():
        return "evaluated" if evaluated else "trained"
    return "training" if is_locked(run.lock) else "stopped"


def _read_hours(run: Run) -> float | None:
    """Of the last process that trained the run: it writes config.toml when it begins, and a line at each step."""
    if not run.metrics.is_file():
        return None
    return max(0.0, run.metrics.stat().st_mtime - run.config_file.stat().st_mtime) / 3600


def as_rows(runs: Sequence[RunRow]) -> list[list[str]]:
    """The table for a person; the first row is the heading."""
    return [HEADING, *(_cells(run) for run in runs)]


def _cells(run: RunRow) -> list[str]:
    settings = ", ".join(f"{key}={snippet(value, 40)}" for key, value in (run.settings or {}).items())
    return [
        run.name,
        run.state,
        "-" if run.step is None else f"{run.step:,}",
        *("-" if loss is None else f"{loss:.3f}" for loss in (run.before, run.after)),
        "-" if run.hours is None else f"{run.hours:.2f}",
        f"{run.bytes / 1e9:.2f} GB" if run.bytes >= 1e8 else f"{run.bytes / 1e6:.1f} MB",
        settings or "-",
    ]
