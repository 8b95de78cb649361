"""The report of a run: a summary here, report.html and report.md in its folder. --against compares it with another run,
--all lists every run."""

import sys
import textwrap
from pathlib import Path
from typing import Any

from recipe.core.cli import add_run, build_parser, entry, load_config, load_run
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.manifest import read_manifest
from recipe.core.run import Run
from recipe.core.text import printable, show, snippet, table
from recipe.planning import outcome
from recipe.reports import comparison, runs
from recipe.reports import evaluation as numbers
from recipe.reports.run_html import page
from recipe.reports.run_markdown import markdown
from recipe.reports.run_view import read_evaluation, read_metrics, read_view
from recipe.reports.view import Table

STAGE = "report"
PAGE, MARKDOWN = "report.html", "report.md"


def run(folder: Path) -> dict[str, Any]:
    """What the run's manifest and eval.json say, joined."""
    opened = Run(folder)
    manifest = read_manifest(folder)
    evaluation = read_evaluation(opened)
    if not evaluation:
        raise RecipeError(f"{folder} has not been evaluated: run `python -m recipe.evaluate --run {folder}` first")
    return {"run": str(opened.short), "train": manifest["results"], "evaluation": evaluation}


def summarize(result: dict[str, Any]) -> str:
    """The summary as text, at most 100 columns wide."""
    evaluation, folder = result["evaluation"], result["run"]
    base, tuned = evaluation["base"], evaluation["tuned"]
    rows = [["", "before", "after"]]
    for key, title in (("loss", "validation loss"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte")):
        rows.append([title, f"{base[key]:.3f}", f"{tuned[key]:.3f}"])
    if found := evaluation.get("identity"):
        rows.append(["knows its name", *(f"{found[f'{who}_hits']} of {found['total']}" for who in ("base", "tuned"))])
    parts = [table(rows), textwrap.fill(numbers.headline(evaluation), 98)]
    for answer in evaluation["answers"][:3]:
        parts.append(f"{answer['question']}\n{quoted('before', answer['base'])}\n{quoted('after', answer['tuned'])}")
    places = [["adapter", f"{folder}/adapter"], ["all answers", f"{folder}/samples.md"]]
    if (Path(folder) / "merged").is_dir():
        places.append(["merged model", f"{folder}/merged"])
    parts.append("\n".join(f"{name:14}{place}" for name, place in places))
    parts.append(f"Chat with it: make chat RUN={folder}")
    return "\n\n".join(parts)


def quoted(who: str, text: str) -> str:
    """An answer under its question: control characters shown, long ones cut."""
    flat = " ".join(printable(text, keep="\n\t").split())
    return textwrap.indent(textwrap.fill(textwrap.shorten(flat, 300, placeholder=" ..."), 86), f"  {who:7} ")


def write_pages(opened: Run, against: Run | None) -> str:
    """Write report.html and report.md into the run's folder; `against` is drawn over it. Returns what differs.

    Raises RecipeError if a file of a run was altered or has another shape than this version writes.
    """
    try:
        view = read_view(opened, plan_tables(opened))
        other = read_view(against) if against else None
        words = comparison.explain(opened, against, compare_losses(opened, against)) if against else ""
        pages = {PAGE: page(view, other, words), MARKDOWN: markdown(view, other, words)}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RecipeError(
            f"{opened.folder}: its files have another shape than this version writes ({snippet(repr(error))}): "
            "evaluate the run again"
        ) from None
    for name, text in pages.items():
        with atomic_file(opened.folder / name) as file:
            file.write(text)
    opened.record(PAGE, MARKDOWN)
    return words


def plan_tables(opened: Run) -> list[Table]:
    """The plan of the run against what happened; a sentence where there can be no plan."""
    results = read_manifest(opened.folder)["results"] if opened.manifest_file.is_file() else {}
    title = "The plan against what happened"
    try:
        rows = outcome.compare(opened.config(), read_metrics(opened.metrics), results)
    except RecipeError as error:
        return [Table(title, [[]], f"There is no plan to compare with: {error}.")]
    text = (
        "The plan is arithmetic for a Tesla P100 (make plan). On another device, speed, hours and memory are not "
        "comparable. Peak memory is what torch allocated on a GPU, or what the process used on a CPU."
    )
    return [Table(title, rows, text)]


def compare_losses(one: Run, two: Run) -> list[float] | None:
    """[value, low, high] of the tuned loss of `two` minus that of `one`, paired over their conversations; None if they
    were not measured on the same ones."""
    shared = comparison.shared_losses(comparison.read_losses(one), comparison.read_losses(two))
    if not shared:
        return None
    import numpy as np

    from recipe.evaluation.intervals import ratio

    tokens, first, second = np.array(shared, float).T
    difference = ratio(first, second, tokens).difference
    return [difference.value, difference.low, difference.high]


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.report --run runs/demo/latest")
    add_run(parser)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another run, drawn over this one")
    parser.add_argument("--all", action="store_true", help="list every run of the folder `runs`, instead of --run")
    args = parser.parse_args(argv)
    if args.all:
        found = runs.list_runs(Path(load_config(args).runs))
        show({"runs": [vars(each) for each in found]}, table(runs.as_rows(found), right=(2, 3, 4, 5, 6)), args.json)
        return 0
    _, opened = load_run(args)
    against = Run.open(args.against) if args.against else None
    file = opened.short / PAGE
    if args.dry_run:
        show({"page": str(file)}, f"would write {file}", args.json)
        return 0
    opened.check_recorded(opened.exports.name)
    if opened.manifest_file.is_file():  # else training still appends to it
        opened.check_recorded(opened.metrics.name)
    words = write_pages(opened, against)
    said = f"\n\n{textwrap.fill(words, 98)}" if words else ""
    if not opened.eval_json.is_file():
        show({"run": str(opened.folder), "page": str(file)}, f"not evaluated yet; report: {file}{said}", args.json)
        return 0
    result = run(opened.folder)
    show(result, f"{summarize(result)}\nReport:       {file}{said}", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
