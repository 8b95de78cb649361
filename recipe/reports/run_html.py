"""report.html of a run: what happened and what came out, in one file without scripts or anything from elsewhere.

Answers and prompts are untrusted text: all of it goes through `safe`, and the page's own policy forbids every script.
"""

import html as escaping
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipe.core.text import printable
from recipe.reports.charts import Series, line_chart, smooth

Rows = Sequence[Sequence[object]]
SMOOTHING = 0.9
CURVES = (  # key in metrics.jsonl, title
    ("learning_rate", "Learning rate"),
    ("grad_norm", "Gradient norm before clipping"),
    ("tokens_per_second", "Tokens per second since the process began"),
    ("memory_mb", "Memory, MB"),
)
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881 }}
:root {{ --c0: #3b78b5; --c1: #c9622f; --c2: #2f8f5b; --c3: #8a63b5 }}
@media (prefers-color-scheme: dark) {{ :root {{ --c0: #6fa8dc; --c1: #e8905f; --c2: #63c08d; --c3: #b898de }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
h1, h2 {{ line-height: 1.2 }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid var(--line) }}
.scroll {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }}
.small {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem }}
figure {{ margin: .8rem 0 }} figcaption {{ font-weight: 600 }}
.chart {{ width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: currentColor }}
.grid {{ stroke: var(--line) }} .line {{ fill: none; stroke-width: 2; stroke: var(--c) }} .dot {{ fill: var(--c) }}
.c0 {{ --c: var(--c0) }} .c1 {{ --c: var(--c1) }} .c2 {{ --c: var(--c2) }} .c3 {{ --c: var(--c3) }}
.key {{ font-weight: 400; margin-left: .8rem; color: var(--c) }}
.answers {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem }}
.answer {{ white-space: pre-wrap; overflow-wrap: anywhere }}
.answer {{ background: var(--soft); border-radius: .4rem; padding: .6rem .8rem }}
.headline {{ font-size: 1.15rem }} code {{ overflow-wrap: anywhere }}
details {{ margin: .5rem 0 }} summary {{ cursor: pointer }}
</style></head><body>
"""


@dataclass(frozen=True)
class Table:
    """A table of the report with a heading row, and a sentence above it."""

    title: str
    rows: Rows
    text: str = ""


@dataclass(frozen=True)
class RunView:
    """What the page shows of one run; `metrics` are the rows of metrics.jsonl."""

    name: str
    state: str
    headline: str
    metrics: Sequence[Mapping[str, Any]]
    tables: Sequence[Table] = ()
    answers: Sequence[Mapping[str, str]] = ()  # question, base, tuned
    facts: Mapping[str, str] = field(default_factory=dict)  # environment, hashes, how to replay


def page(run: RunView, against: RunView | None = None, differences: str = "") -> str:
    """The page of `run`; with `against` its curves lie over the other's, and `differences` says what differs."""
    out = [HEAD.format(title=safe(run.name)), f"<h1>{safe(run.name)}</h1>", f"<p>{safe(run.state)}</p>"]
    out.append(f'<p class="headline">{safe(run.headline)}</p>')
    if against:
        out.append(f"<h2>Against {safe(against.name)}</h2><p>{safe(against.headline)}</p><p>{safe(differences)}</p>")
    out += ["<h2>Curves</h2>", *curves(run, against)]
    out += map(table, run.tables)
    if run.answers:
        out += ["<h2>Answers before and after</h2>", *map(_answer, run.answers)]
    out.append(table(Table("Where it comes from", [["what", "value"], *run.facts.items()])))
    return "\n".join([*out, "</body></html>\n"])


def curves(run: RunView, against: RunView | None) -> list[str]:
    """Loss in one large chart, everything else in small ones."""
    runs = [run, *([against] if against else [])]
    loss = []
    for each in runs:
        label = f"{each.name}: " if against else ""
        loss.append(Series(f"{label}training", smooth(values(each, "loss"), SMOOTHING)))
        loss.append(Series(f"{label}validation", values(each, "eval_loss"), dots=True))
    out = [line_chart(f"Loss, nats per trained token (training smoothed by {SMOOTHING})", loss)]
    small = [line_chart(title, [Series(each.name, values(each, key)) for each in runs]) for key, title in CURVES]
    if any(small):
        out.append(f'<div class="small">{"".join(small)}</div>')
    return [chart for chart in out if chart] or ["<p>No step has been logged yet.</p>"]


def values(run: RunView, key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows of metrics that have it."""
    return [
        (float(row["step"]), float(row[key]))
        for row in run.metrics
        if isinstance(row.get(key), int | float) and isinstance(row.get("step"), int | float)
    ]


def table(item: Table) -> str:
    """A heading, a sentence and the rows."""
    heading, *rows = item.rows
    head = "".join(f"<th>{safe(cell)}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{safe(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    text = f"<p>{safe(item.text)}</p>" if item.text else ""
    return f'<h2>{safe(item.title)}</h2>{text}<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _answer(item: Mapping[str, str]) -> str:
    sides = "".join(
        f'<div><b>{who}</b><div class="answer">{safe(item[who]) or "(an empty answer)"}</div></div>'
        for who in ("base", "tuned")
    )
    return f'<details><summary>{safe(item["question"])}</summary><div class="answers">{sides}</div></details>'


def safe(value: object) -> str:
    """Text that a browser shows and nothing else: no markup, no control or bidirectional characters."""
    return escaping.escape(printable(str(value), keep="\n\t"), quote=True)


def markdown(run: RunView) -> str:
    """The same without pictures, for a code host."""
    lines = [f"# {_cell(run.name)}", "", _cell(run.state), "", f"**{_cell(run.headline)}**"]
    for item in [*run.tables, Table("Where it comes from", [["what", "value"], *run.facts.items()])]:
        heading, *rows = [[_cell(cell) for cell in row] for row in item.rows]
        lines += ["", f"## {_cell(item.title)}", ""] + ([_cell(item.text), ""] if item.text else [])
        lines += [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    for answer in run.answers:
        lines += ["", f"## {_cell(answer['question'])}"]
        for who in ("base", "tuned"):
            quoted = "\n".join(f"    {line}" for line in printable(answer[who], keep="\n\t").splitlines())
            lines += ["", f"**{who}**", "", quoted or "    (an empty answer)"]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """One line of Markdown text in which nothing is markup."""
    return escaping.escape(printable(str(value)), quote=False).replace("|", "\\|")
