"""report.html: the corpus to look at, in one file without scripts, fonts or pictures from elsewhere.

Conversations are untrusted text. All of it goes through `_safe`, and the page's own policy forbids every script, so
that markup in a conversation could not run even if it got through.
"""

import html as escaping
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from recipe.core.text import printable
from recipe.reports.corpus import Section, sections

BARS = ("Tokens of", "Turns of", "Languages")  # sections whose last column is drawn
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
    """The page: what report.md says, and samples as rendered, token by token, what has a loss coloured."""
    out = [_HEAD, "<h1>Corpus</h1>"]
    out += map(_section, sections(results, settings))
    out.append(
        '<h2>Samples</h2><p>As rendered for training, token by token; <span class="trained">what has a loss</span>.</p>'
    )
    for title, samples in shown.items():
        out.append(f"<h3>{_safe(title)}</h3>")
        out += map(_sample, samples)
    return "\n".join([*out, "</body></html>\n"])


def _section(section: Section) -> str:
    title, text, (heading, *rows) = section
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    if title.startswith(BARS):
        body = _with_bars(rows)
    head = "".join(map(_cell, heading, rows[0], itertools.repeat("th")))
    paragraph = f"<p>{_safe(text)}</p>" if text else ""
    return f"<h2>{_safe(title)}</h2>{paragraph}<table><tr>{head}</tr>\n{body}</table>"


def _with_bars(rows: Sequence[Sequence[str]]) -> str:
    counts = [int(row[-1].replace(",", "")) for row in rows]
    most = max(counts)
    widths = [round(24 * count / most, 2) for count in counts]
    return "".join(
        f'<tr>{"".join(map(_cell, row))}<td><span class="bar" style="width:{width}rem"></span></td></tr>\n'
        for row, width in zip(rows, widths, strict=True)
    )


def _cell(text: str, like: str = "", tag: str = "td") -> str:
    """A cell; numbers, and what stands above one (`like`), to the right."""
    number = (like or text).replace(",", "").replace(".", "").rstrip("%").isdecimal()
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
    """Text that a browser shows and nothing else: no markup, and no control or bidirectional characters."""
    return escaping.escape(printable(text, keep="\n\t"), quote=True)
