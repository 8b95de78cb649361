"""report.md of a run: what report.html shows, without pictures, for a code host."""

from recipe.core.text import markdown as escape
from recipe.core.text import markdown_table
from recipe.reports.samples import answer_lines
from recipe.reports.view import RunView, Table


def markdown(run: RunView, against: RunView | None = None, differences: str = "") -> str:
    """The report as Markdown; with `against` it says in what the two runs differ."""
    lines = [f"# {escape(run.name)}", "", escape(run.state), "", f"**{escape(run.headline)}**"]
    lines += [line for warning in run.warnings for line in ("", f"> **Warning:** {escape(warning)}.")]
    if against:
        lines += ["", f"## Against {escape(against.name)}", "", escape(against.headline), "", escape(differences)]
    for item in run.tables:
        lines += _table(item)
    for answer in run.answers:
        lines += answer_lines(answer)
    if run.replay:
        lines += ["", "## Replay", "", *(f"    {command}" for command in run.replay)]
    lines += _table(Table("Where it comes from", [["what", "value"], *run.facts.items()]))
    return "\n".join(lines) + "\n"


def _table(item: Table) -> list[str]:
    rows = [[str(cell) for cell in row] for row in item.rows]
    text = [escape(item.text), ""] if item.text else []
    return ["", f"## {escape(item.title)}", "", *text, *([markdown_table(rows)] if len(rows) > 1 else [])]
