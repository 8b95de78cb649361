"""What the folder of a run tells, for its report: of a finished run, of one that still trains or was stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.manifest import differences, read_manifest
from recipe.core.run import Run
from recipe.reports import exports
from recipe.reports.run_html import RunView, Table

MODELS = ("base", "tuned")
COLUMNS = (*MODELS, "difference")  # JSON files are sorted by key, so the order is named wherever it matters


def read_view(run: Run) -> RunView:
    """The view of `run`. Parts that do not exist yet are left out. Raises RecipeError if a part was altered."""
    manifest = read_manifest(run.folder) if run.manifest_file.is_file() else None
    evaluation = run.evaluation() or {}
    metrics = read_metrics(run.metrics)
    tables = [*_evaluation_tables(evaluation), *_export_tables(_read_json(run.exports)), *_training_tables(manifest)]
    return RunView(
        name=f"{run.folder.parent.name}/{run.folder.name}",
        state=_state(manifest, metrics),
        headline=headline(evaluation),
        metrics=metrics,
        tables=tables,
        answers=evaluation.get("answers", ()),
        facts=_facts(run, manifest),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. A last line that is cut off, as while the run writes it, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def headline(evaluation: Mapping[str, Any]) -> str:
    """The outcome in a sentence."""
    if not evaluation:
        return "Not evaluated yet: run make evaluate."
    base, tuned = (evaluation[name]["loss"] for name in MODELS)
    text = f"Validation loss {base:.3f} before and {tuned:.3f} after"
    if bounds := evaluation.get("intervals", {}).get("loss", {}).get("difference"):
        text += f": a difference of {bounds[0]:.3f} (95 % interval {bounds[1]:.3f} to {bounds[2]:.3f})"
    if probe := evaluation.get("forgetting"):
        how = "worse than before" if probe["worse"] else "no worse than before"
        text += f". On unrelated text the tuned model is {how}"
    return f"{text}."


def explain_difference(one: RunView, two: RunView, first: Run, second: Run) -> str:
    """In words: in which settings two runs differ, and whether their losses differ by more than the intervals."""
    changed = list(differences(configs.hashed(first.config()), configs.hashed(second.config())))
    settings = f"Settings that differ: {'; '.join(changed)}." if changed else "All settings are the same."
    losses = [_read_json(run.eval_json).get("intervals", {}).get("loss", {}).get("tuned") for run in (first, second)]
    if not all(losses):
        return f"{settings} One of the runs has no loss with an interval, so the losses cannot be compared."
    (value, low, high), (other, other_low, other_high) = losses
    apart = high < other_low or other_high < low
    verdict = "larger than their intervals" if apart else "within their intervals, so it may be chance"
    return f"{settings} The tuned losses are {value:.3f} and {other:.3f}: the difference is {verdict}."


def _state(manifest: Mapping[str, Any] | None, metrics: Sequence[Mapping[str, Any]]) -> str:
    step = max((row.get("step", 0) for row in metrics), default=0)
    if manifest is None:
        return f"Not finished: {step} steps are logged. It is still training, or it was stopped and can be resumed."
    results = manifest["results"]
    trained = results.get("trained_tokens")
    return f"Finished after {results.get('steps', step)} steps" + (f", {trained:,} trained tokens." if trained else ".")


def _evaluation_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    if not evaluation:
        return []
    intervals = evaluation.get("intervals", {})
    rows: list[list[object]] = [["", "base", "tuned", "difference"]]
    for key, title in (("loss", "validation loss"), ("bits_per_byte", "bits per byte")):
        rows.append([title, *_columns(intervals[key])] if key in intervals else [title, "", "", ""])
    rows.append(["perplexity", *(f"{evaluation[name]['perplexity']:.3f}" for name in MODELS), ""])
    if probe := evaluation.get("forgetting"):
        rows.append(["unrelated text, bits per byte", *_columns(probe)])
    for name, item in evaluation.get("texts", {}).items():
        rows.append([f"{name}, bits per byte", *_columns(item)])
    for name, item in evaluation.get("choices", {}).items():
        rows.append([f"{name}, accuracy", *_columns(item["accuracy"])])
    if found := evaluation.get("instructions"):
        rows.append(["instructions followed, strict", *(f"{found[name]['strict']:.1%}" for name in MODELS), ""])
        rows.append(["instructions followed, loose", *(f"{found[name]['loose']:.1%}" for name in MODELS), ""])
    if found := evaluation.get("identity"):
        rows.append(["knows its name", *(f"{found[f'{name}_hits']} of {found['total']}" for name in MODELS), ""])
    count = intervals.get("conversations", 0)
    text = f"95 % intervals in brackets, by the paired bootstrap over {count} conversations." if count else ""
    return [Table("Evaluation", rows, text), *map(_group_table, *zip(*_groups(intervals), strict=True))]


def _export_tables(result: Mapping[str, Any]) -> list[Table]:
    return [Table("What was shipped, and its loss", exports.rows(result), exports.explain(result))] if result else []


def _groups(intervals: Mapping[str, Any]) -> list[tuple[str, Any]]:
    titles = {"by_source": "By source", "by_language": "By language", "by_position": "By position in the conversation"}
    return [(title, intervals.get(key, ())) for key, title in titles.items()]


def _group_table(title: str, groups: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[object]] = [["", "conversations", "base", "tuned", "difference"]]
    rows += [[group["name"], group["conversations"], *_columns(group)] for group in groups]
    return Table(f"Validation loss: {title.lower()}", rows)


def _training_tables(manifest: Mapping[str, Any] | None) -> list[Table]:
    if manifest is None:
        return []
    rows = [["what", "value"], *([name.replace("_", " "), _value(item)] for name, item in manifest["results"].items())]
    return [Table("Training", rows)]


def _facts(run: Run, manifest: Mapping[str, Any] | None) -> dict[str, str]:
    facts = {"replay": f"python -m recipe.train --config {run.config_file}"}
    if manifest is None:
        return facts
    facts |= {f"input: {name}": str(value) for name, value in manifest["inputs"].items()}
    facts |= {f"output: {name}": item["sha256"] for name, item in manifest["outputs"].items()}
    facts["code"] = str(manifest.get("code", ""))
    return facts | {name: str(value) for name, value in manifest.get("environment", {}).items() if value}


def _columns(intervals: Mapping[str, Sequence[float]]) -> list[str]:
    return [_bounds(intervals[name]) for name in COLUMNS]


def _bounds(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def _value(item: object) -> str:
    return f"{item:.4f}" if isinstance(item, float) else f"{item:,}" if isinstance(item, int) else str(item)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
