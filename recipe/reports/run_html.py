"""report.html of a run: what happened and what came out, in one file without scripts or anything from elsewhere.

Answers and prompts are untrusted text: all of it goes through `safe`, and the page's own policy forbids every script.
"""

import base64
import hashlib
import html as escaping
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipe.core.text import printable
from recipe.reports.charts import SMALL, Series, interval_chart, line_chart, smooth
from recipe.reports.view import RunView, Table, Tile

STYLE = Path(__file__).with_name("run.css")
SMOOTHING = 0.9
OPEN_ANSWERS = 3  # the others are folded
LONG = 40  # characters: a longer cell may be broken into lines
CURVES = (  # key in metrics.jsonl, title
    ("learning_rate", "Learning rate"),
    ("grad_norm", "Gradient norm before clipping"),
    ("tokens_per_second", "Tokens per second since the process began"),
    ("memory_mb", "Peak memory, MB"),
    ("loss_scale", "Loss scale"),
    ("skipped_steps", "Skipped steps"),
)
CONSTANT = ("loss_scale", "skipped_steps")  # shown only if they change
GROUPS = {
    "prompts": "Answers before and after",
    "identity": "Questions about its name",
    "instructions": "Instructions that rules judged",
    "judged": "Open questions",
}
_BOUNDS = re.compile(r"(\[[^\]]*\])$")


def page(run: RunView, against: RunView | None = None, differences: str = "") -> str:
    """The page of `run`; with `against` its curves lie over the other's, and `differences` says what differs."""
    sections = [("Curves", "".join(curves(run, against)))]
    if against:
        text = f"<p>{safe(against.headline)}</p><p>{safe(differences)}</p>"
        sections.insert(0, (f"Against {against.name}", text))
    sections += [(item.title, table(item)) for item in run.tables]
    for group, title in GROUPS.items():
        if found := [item for item in run.answers if item.get("group", "prompts") == group]:
            sections.append((title, answers(found, group == "prompts")))
    if run.replay:
        sections.append(("Replay", f"<pre>{safe(chr(10).join(run.replay))}</pre>"))
    sections.append(("Where it comes from", table(Table("", [["what", "value"], *run.facts.items()]))))
    body = [
        f'<section id="s{number}"><h2>{safe(title)}</h2>{text}</section>'
        for number, (title, text) in enumerate(sections)
    ]
    links = [f'<a href="#s{number}">{safe(title)}</a>' for number, (title, _) in enumerate(sections)]
    return "\n".join([*head(run), f"<nav>{' '.join(links)}</nav>", *body, "</main></body></html>\n"])


def head(run: RunView) -> list[str]:
    """Everything above the sections: the outcome, warnings, the most important numbers."""
    style = STYLE.read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{safe(run.name)}</title>",
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{allowed}'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{style}</style></head><body><main>",
        f'<h1>{safe(run.name)}</h1><p class="soft">{safe(run.state)}</p>',
        f'<p class="headline">{safe(run.headline)}</p>',
        *(f'<p class="warning"><b>Warning:</b> {safe(warning)}.</p>' for warning in run.warnings),
        f'<div class="tiles">{"".join(map(tile, run.tiles))}</div>' if run.tiles else "",
    ]


def tile(item: Tile) -> str:
    """A number in a box of its own, what it was before below it."""
    before = f"<span>{safe(item.before)}</span>" if item.before else ""
    return f'<div class="tile {item.tone}"><span>{safe(item.title)}</span><b>{safe(item.value)}</b>{before}</div>'


def curves(run: RunView, against: RunView | None) -> list[str]:
    """Loss in one large chart, everything else in small ones."""
    runs = [run, *([against] if against else [])]
    loss = []
    for each in runs:
        label = f"{each.name}: " if against else ""
        raw = each.values("loss")
        loss.append(Series("", raw, faint=True))
        loss.append(Series(f"{label}training (smoothed)", smooth(raw, SMOOTHING)))
        loss.append(Series(f"{label}validation", each.values("eval_loss"), dots=True))
    out = [line_chart("Loss, nats per trained token", loss)]
    small = []
    for key, title in CURVES:
        series = [Series(each.name, each.values(key)) for each in runs]
        changes = any(len({value for _, value in each.points}) > 1 for each in series)
        small.append(line_chart(title, series, size=SMALL) if changes or key not in CONSTANT else "")
    if any(small):
        out.append(f'<div class="small">{"".join(small)}</div>')
    return [chart for chart in out if chart] or ["<p>No step has been logged yet.</p>"]


def table(item: Table) -> str:
    """A sentence, the rows, and the chart of intervals if there is one."""
    heading, *rows = item.rows
    top = "".join(f"<th>{safe(title)}</th>" for title in heading)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows)
    text = f"<p>{safe(item.text)}</p>" if item.text else ""
    whole = f'<div class="scroll"><table><tr>{top}</tr>\n{body}</table></div>' if rows else ""
    return f"{text}{whole}{interval_chart(item.bars_title, item.bars)}"


def cell(value: object) -> str:
    """A cell; an interval at its end is set apart from its value, a hash is in a typewriter's letters."""
    text = safe(value)
    kind = "long" if len(text) > LONG else ""
    if re.fullmatch(r"[0-9a-f]{32,}", text):
        kind += " hash"
    text = _BOUNDS.sub(r'<span class="bounds">\1</span>', text)
    return f'<td class="{kind.strip()}">{text}</td>'


def answers(items: Sequence[Mapping[str, str]], first_open: bool) -> str:
    """Questions that unfold to both answers."""
    return "".join(_answer(item, first_open and number < OPEN_ANSWERS) for number, item in enumerate(items))


def _answer(item: Mapping[str, str], unfolded: bool) -> str:
    sides = "".join(
        f'<div><b>{who}</b><div class="answer">{safe(item[who]) or "(an empty answer)"}</div></div>'
        for who in ("base", "tuned")
    )
    mark = " open" if unfolded else ""
    return f'<details{mark}><summary>{safe(item["question"])}</summary><div class="answers">{sides}</div></details>'


def safe(value: object) -> str:
    """Text that a browser shows and nothing else: no markup, no control or bidirectional characters."""
    return escaping.escape(printable(str(value), keep="\n\t"), quote=True)
