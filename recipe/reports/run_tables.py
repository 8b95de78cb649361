"""The tables of a run's report: evaluation, votes, training, corpus."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.core.files import MANIFEST, digest
from recipe.core.manifest import read_manifest
from recipe.reports import evaluation as numbers
from recipe.reports import exports
from recipe.reports.charts import Bar
from recipe.reports.view import Table

Values = Mapping[str, Any]
GROUPS = {"by_source": "source", "by_language": "language", "by_position": "position in the conversation"}


def evaluation_tables(evaluation: Values) -> list[Table]:
    """All numbers with intervals, then the validation loss by source, language and position."""
    if not evaluation:
        return []
    intervals = evaluation.get("intervals", {})
    count = intervals.get("conversations", 0)
    text = f"95 % intervals in brackets, by the paired bootstrap over {count} conversations." if count else ""
    out = [Table("Evaluation", numbers.summary(evaluation), text)]
    return out + [_group_table(title, intervals[key]) for key, title in GROUPS.items() if intervals.get(key)]


def _group_table(title: str, groups: Sequence[Values]) -> Table:
    rows: list[list[object]] = [["", "conversations", *numbers.COLUMNS]]
    rows += [[group["name"], group["conversations"], *numbers.columns(group)] for group in groups]
    bars = [Bar(group["name"], *group["difference"]) for group in groups if len(group["difference"]) == 3]
    shown = bars if len(bars) > 1 else []
    return Table(f"Validation loss by {title}", rows, "", shown, "Difference of tuned and base, with 95 % intervals")


def vote_tables(votes: Values) -> list[Table]:
    """What people or a judge model preferred."""
    if not votes:
        return []
    text = (
        f"{votes['votes']} votes on {votes['questions']} questions, blind; a tie is half a point for each. "
        f"{votes['first']:.0%} of the points went to the answer that was shown first."
    )
    return [Table("Votes", numbers.vote_rows(votes), text)]


def training_tables(manifest: Values | None) -> list[Table]:
    """The results in the run's manifest."""
    if manifest is None:
        return []
    rows: list[list[object]] = [["what", "value"]]
    rows += [[name.replace("_", " "), show(item)] for name, item in manifest["results"].items() if item is not None]
    return [Table("Training", rows)]


def corpus_tables(folder: str, manifest: Values | None) -> list[Table]:
    """What the corpus holds; a sentence if it is no longer there, or another one. Raises RecipeError: it is damaged."""
    if not (Path(folder) / MANIFEST).is_file():
        return [Table("Corpus", [[]], "The corpus is not where the run's config says, so it cannot be summarized.")]
    corpus = read_manifest(Path(folder))
    if manifest and digest(corpus["outputs"]) != manifest["inputs"].get("corpus"):
        return [Table("Corpus", [[]], "Where the run's config says, there is another corpus by now.")]
    try:
        return [_splits(corpus["results"]), _sources(corpus["results"])]
    except (KeyError, TypeError, AttributeError):
        return [Table("Corpus", [[]], "Another version of the recipe made the corpus; it cannot be summarized.")]


def _splits(results: Values) -> Table:
    rows: list[list[object]] = [["", "samples", "tokens", "trained tokens"]]
    for key, title in (("train", "training"), ("val", "validation")):
        rows.append([title, *(f"{results[name][key]:,}" for name in ("samples", "tokens", "trained_tokens"))])
    lengths = results["lengths"]
    median, p90, most = (f"{lengths[key]:,}" for key in ("median", "p90", "max"))
    text = f"Tokens of a sample: median {median}, 90th percentile {p90}, most {most}."
    return Table("Corpus", rows, text)


def _sources(results: Values) -> Table:
    rows: list[list[object]] = [["source", "conversations read", "kept", "training tokens", "dropped most often for"]]
    for source, account in results["sources"].items():
        counts = account["conversations"]
        dropped = sorted(counts["dropped"].items(), key=lambda item: -item[1])
        why = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in dropped[:3])
        rows.append([source, f"{counts['read']:,}", f"{counts['kept']:,}", f"{results['mixture'][source]:,}", why])
    return Table("Sources of the corpus", rows)


def show(item: object) -> str:
    """A number of a manifest for a person."""
    return f"{item:.4f}" if isinstance(item, float) else f"{item:,}" if isinstance(item, int) else str(item)


def export_tables(result: Mapping[str, Any]) -> list[Table]:
    """The validation loss of each format that recipe.merge wrote, as read from its files."""
    return [Table("What was shipped, and its loss", exports.rows(result), exports.explain(result))] if result else []
