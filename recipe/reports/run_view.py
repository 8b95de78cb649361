"""What the folder of a run tells, for its report: of a finished run, of one that still trains or was stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.core.files import is_locked
from recipe.core.manifest import read_manifest
from recipe.core.run import Run
from recipe.reports import evaluation as numbers
from recipe.reports.run_tables import corpus_tables, evaluation_tables, export_tables, training_tables, vote_tables
from recipe.reports.view import RunView, Table, Tile


def read_view(run: Run, plan: Sequence[Table] = ()) -> RunView:
    """The view of `run`, with the tables of `plan`. Parts that do not exist yet are left out.

    Raises RecipeError if eval.json was altered.
    """
    manifest = read_manifest(run.folder) if run.manifest_file.is_file() else None
    exported = read_json(run.exports)
    evaluation, votes, metrics = read_evaluation(run), read_json(run.votes), read_metrics(run.metrics)
    votes = votes if votes.get("run") == evaluation.get("provenance", {}).get("inputs", {}).get("run") else {}
    return RunView(
        name=f"{run.folder.parent.name}/{run.folder.name}",
        state=describe_state(run, metrics),
        headline=numbers.headline(evaluation),
        metrics=metrics,
        warnings=tuple(numbers.warnings(evaluation)),
        tiles=list_tiles(evaluation, metrics),
        tables=[
            *evaluation_tables(evaluation),
            *vote_tables(votes),
            *export_tables(exported),
            *plan,
            *training_tables(manifest),
            *corpus_tables(run.config().corpus.path, manifest),
        ],
        answers=evaluation.get("answers", ()),
        facts=list_facts(manifest, evaluation),
        replay=list_commands(run),
    )


def read_evaluation(run: Run) -> dict[str, Any]:
    """The run's eval.json; empty if there is none. Raises RecipeError if it was altered or is of another version."""
    return run.evaluation() or {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. A last line that is cut off, as while the run writes it, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def describe_state(run: Run, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Whether the run is finished, trains now, or was stopped, and how far it came."""
    step = max((row.get("step", 0) for row in metrics), default=0)
    if run.manifest_file.is_file():
        return f"Finished after {read_manifest(run.folder)['results'].get('steps', step):,} steps."
    done = max((row.get("epoch", 0.0) for row in metrics), default=0.0)
    far, epochs = f"{step:,} steps", run.config().train.epochs
    if epochs:  # else it keeps an adapter as it is
        far += f", {done:.2f} of {epochs:g} epochs ({done / epochs:.0%})"
    if is_locked(run.lock):
        return f"Training now: {far} so far."
    return f"Not finished: stopped after {far}. The same command resumes it."


def list_tiles(evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[Tile]:
    """The numbers that are seen first."""
    out = []
    intervals = evaluation.get("intervals", {})
    if loss := intervals.get("loss"):
        out.append(_fall("Validation loss", loss))
        value, before = (f"{evaluation[name]['perplexity']:.2f}" for name in ("tuned", "base"))
        out.append(Tile("Perplexity", value, f"before: {before}", _tone(loss["difference"])))
    if probe := evaluation.get("forgetting"):
        out.append(_fall("Unrelated text, bits per byte", probe))
    if found := evaluation.get("instructions"):
        found = found["strict"]
        value, before = (f"{found[name][0]:.0%}" for name in ("tuned", "base"))
        out.append(Tile("Instructions followed", value, f"before: {before}", _tone([-x for x in found["difference"]])))
    if found := evaluation.get("identity"):
        value, before = (f"{found[f'{name}_hits']} of {found['total']}" for name in ("tuned", "base"))
        out.append(Tile("Knows its name", value, f"before: {before}"))
    for key, title in (("loss", "Training loss"), ("eval_loss", "Validation loss so far")):
        values = [row[key] for row in metrics if isinstance(row.get(key), int | float)]
        if values and not evaluation:
            out.append(Tile(title, f"{values[-1]:.3f}", f"first: {values[0]:.3f}"))
    return out


def _fall(title: str, intervals: Mapping[str, Sequence[float]]) -> Tile:
    """A number that should fall."""
    value, before = (f"{intervals[name][0]:.3f}" for name in ("tuned", "base"))
    return Tile(title, value, f"before: {before}", _tone(intervals["difference"]))


def _tone(difference: Sequence[float]) -> str:
    """Good if the whole interval of a difference is below zero, bad if it is above."""
    bounds = difference[1:] or difference
    return "good" if max(bounds) < 0 else "bad" if min(bounds) > 0 else ""


def list_facts(manifest: Mapping[str, Any] | None, evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Inputs and outputs by hash, the code, the packages, the lock they came from."""
    if manifest is None:
        return {"state": "the run has no manifest yet: it is written when training ends"}
    facts = {f"input: {name}": str(value) for name, value in manifest["inputs"].items()}
    facts |= {f"output: {name}": item["sha256"] for name, item in manifest["outputs"].items()}
    facts["code"] = str(manifest.get("code", ""))
    if provenance := evaluation.get("provenance"):
        facts["code of the evaluation"] = str(provenance.get("code", ""))
    return facts | {
        "lock (docker/requirements.lock)" if name == "lock" else name: str(value)
        for name, value in manifest.get("environment", {}).items()
        if value
    }


def list_commands(run: Run) -> list[str]:
    """How to make this run again from the raw files that its config names."""
    config = run.config_file
    stages = ("convert", "corpus", "train")
    return [
        "make setup && make pins",
        *(f"python -m recipe.{stage} --config {config}" for stage in stages),
        f"python -m recipe.evaluate --run {run.folder}",
    ]
