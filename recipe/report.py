"""The report of a run: a summary here, report.html and report.md in its folder; --against compares two runs."""

import sys
import textwrap
from pathlib import Path
from typing import Any

from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.manifest import read_manifest
from recipe.core.run import Run
from recipe.core.text import printable, show, snippet, table
from recipe.reports import run_html
from recipe.reports.run_view import explain_difference, read_view

STAGE = "report"


def run(folder: Path) -> dict[str, Any]:
    """What the run's manifest and eval.json say, joined."""
    manifest = read_manifest(folder)
    if (evaluation := Run(folder).evaluation()) is None:
        raise RecipeError(f"{folder} has not been evaluated: run `python -m recipe.evaluate --run {folder}` first")
    return {"run": str(Run(folder).short), "train": manifest["results"], "evaluation": evaluation}


def page(result: dict[str, Any]) -> str:
    """The summary as text, at most 100 columns wide."""
    evaluation, folder = result["evaluation"], result["run"]
    base, tuned = evaluation["base"], evaluation["tuned"]
    rows = [["", "before", "after"]]
    for key, title in (("loss", "validation loss"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte")):
        rows.append([title, f"{base[key]:.3f}", f"{tuned[key]:.3f}"])
    if found := evaluation.get("identity"):
        rows.append(["knows its name", *(f"{found[f'{who}_hits']} of {found['total']}" for who in ("base", "tuned"))])
    parts = [table(rows)]
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


def write_pages(run: Run, against: Run | None) -> Path:
    """Write report.html and report.md into the run's folder; `against` is drawn over it. Returns the page's path.

    Raises RecipeError if a file of a run was altered or has another shape than this version writes.
    """
    try:
        view = read_view(run)
        other = read_view(against) if against else None
        words = explain_difference(view, other, run, against) if other and against else ""
        pages = {"report.html": run_html.page(view, other, words), "report.md": run_html.markdown(view)}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RecipeError(
            f"{run.folder}: its files have another shape than this version writes ({snippet(repr(error))}): evaluate "
            "the run again"
        ) from None
    for path, text in ((run.folder / name, text) for name, text in pages.items()):
        with atomic_file(path) as file:
            file.write(text)
    return run.folder / "report.html"


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.report --run runs/demo/latest")
    add_run(parser)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another run, drawn over this one")
    args = parser.parse_args(argv)
    _, opened = load_run(args)
    against = Run.open(args.against) if args.against else None
    if args.dry_run:
        show({"page": str(opened.folder / "report.html")}, f"would write {opened.folder}/report.html", args.json)
        return 0
    opened.check_recorded(opened.exports.name)
    file = write_pages(opened, against)
    opened.record("report.html", "report.md")
    if not opened.eval_json.is_file():
        show({"run": str(opened.folder), "page": str(file)}, f"not evaluated yet; report: {file}", args.json)
        return 0
    result = run(opened.folder)
    show(result, f"{page(result)}\nReport:       {opened.short / file.name}", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
