"""report.html: the corpus in one file, without scripts and without fonts or images from elsewhere.

Conversations are untrusted text. All of it goes through `_safe`, and the page's own policy forbids every script: markup
in a conversation could not run even if it got through.
"""

import html as escaping
from collections.abc import Mapping, Sequence
from typing import Any

from recipe.core.text import printable
from recipe.reports.corpus import Cell, Section, sections, show

Shown = tuple[str, str, list[tuple[str, bool]]]  # id, source, (text, trained) of every token

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Corpus</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --bar: #4c8dae; --trained: #2e9e5b33; --token: #8883 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.number { text-align: right }
.bar { display: inline-block; border-radius: 0 .2rem .2rem 0; height: .7rem; background: var(--bar) }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .8rem }
summary { cursor: pointer }
.sample { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace }
.sample span { box-shadow: inset -1px 0 var(--token) } .trained { background: var(--trained) }
</style></head><body>
"""


def html(results: Mapping[str, Any], settings: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]]) -> str:
    """The page: the sections of report.md, and samples as rendered, token by token, with trained tokens coloured."""
    out = [_HEAD, "<h1>Corpus</h1>"]
    out += map(_section, sections(results, settings))
    out.append(
        "<h2>Samples</h2><p>As rendered for training, token by token; "
        '<span class="trained">trained tokens</span> are coloured.</p>'
    )
    for title, samples in shown.items():
        out.append(f"<h3>{_safe(title)}</h3>")
        out += map(_sample, samples)
    return "\n".join([*out, "</body></html>\n"])


def _section(section: Section) -> str:
    numbers = [not isinstance(cell, str) for cell in section.rows[0]]
    head = "".join(_cell(title, number, "th") for title, number in zip(section.heading, numbers, strict=True))
    bars = _bars(section.rows) if section.chart else [""] * len(section.rows)
    body = "".join(
        f"<tr>{''.join(_cell(show(cell), not isinstance(cell, str)) for cell in row)}{bar}</tr>\n"
        for row, bar in zip(section.rows, bars, strict=True)
    )
    paragraph = f"<p>{_safe(section.text)}</p>" if section.text else ""
    return f"<h2>{_safe(section.title)}</h2>{paragraph}<table><tr>{head}</tr>\n{body}</table>"


def _bars(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """A cell with a bar for each row, as long as its last number."""
    counts = [row[-1] for row in rows if isinstance(row[-1], int)]
    most = max(counts)
    return [f'<td><span class="bar" style="width:{24 * count / most:.2f}rem"></span></td>' for count in counts]


def _cell(text: str, number: bool, tag: str = "td") -> str:
    """A table cell; numbers are aligned to the right."""
    return f'<{tag} class="number">{_safe(text)}</{tag}>' if number else f"<{tag}>{_safe(text)}</{tag}>"


def _sample(sample: Shown) -> str:
    name, source, tokens = sample
    text = "".join(
        f'<span class="trained">{_safe(token)}</span>' if trained else f"<span>{_safe(token)}</span>"
        for token, trained in tokens
    )
    summary = f"{_safe(name)}, {_safe(source)}, {len(tokens):,} tokens"
    return f'<details><summary>{summary}</summary><div class="sample">{text}</div></details>'


def _safe(text: str) -> str:
    """Text that a browser only shows: no markup, and no control or bidirectional characters."""
    return escaping.escape(printable(text, keep="\n\t"), quote=True)
