"""A prepared corpus for a person: its sections as tables, report.md, samples with trained tokens marked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.conversations.cleaning.accounting import Change, Drop
from recipe.conversations.templates import Piece, Span
from recipe.core.text import printable

BAR = 40  # characters of the longest bar
MOST_LANGUAGES = 12  # listed by name
MOST_TURNS = 20  # longer conversations are counted together
GREEN, PLAIN = "\033[32m", "\033[0m"
# Characters that Markdown, or HTML inside Markdown, would take for markup.
_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{character: f"\\{character}" for character in "\\`*_[]|~"}}
)


@dataclass(frozen=True)
class Share:
    """A number from 0 to 1 that is shown as a percentage."""

    value: float


Cell = str | int | Share


@dataclass(frozen=True)
class Section:
    """A table of a report. Nothing in it is escaped.

    `chart`: the numbers of the last column are drawn as bars, too.
    """

    title: str
    heading: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    text: str = ""
    chart: bool = False


def show(cell: Cell) -> str:
    """The cell as text: numbers with thousands separators, shares in percent."""
    if isinstance(cell, Share):
        return f"{cell.value:.1%}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def markdown(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """report.md, from the manifest's results and settings."""
    lines = ["# Corpus"]
    for section in sections(results, settings):
        lines += ["", f"## {section.title}", ""] + ([section.text, ""] if section.text else [])
        heading = [*section.heading, *([""] if section.chart else [])]
        bars = [f" {bar} |" for bar in draw_bars(section.rows)] if section.chart else [""] * len(section.rows)
        lines += [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
        lines += [
            f"| {' | '.join(_escape(show(cell)) for cell in row)} |{bar}"
            for row, bar in zip(section.rows, bars, strict=True)
        ]
    return "\n".join(lines) + "\n"


def draw_bars(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """A bar for each row, as long as its last number."""
    counts = [row[-1] for row in rows if isinstance(row[-1], int)]
    return ["█" * -(-BAR * count // max(counts)) for count in counts]


def sections(results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Section]:
    """The sections of both reports in order, without the empty ones."""
    out = [_splits(results, settings), *_sources(results), _unknown_roles(results), _placeholders(results)]
    out += [_languages(results), _changes(results), _rejected(results)]
    if results["lengths"]:
        out += [_lengths(results), _turns(results), _packs(results)]
    return [section for section in out if section.rows]


def _splits(results: Mapping[str, Any], settings: Mapping[str, Any]) -> Section:
    samples, tokens, trained = results["samples"], results["tokens"], results["trained_tokens"]
    rows = [
        (name, samples[split], tokens[split], trained[split], _share(trained[split], tokens[split]))
        for split, name in (("train", "training"), ("val", "validation"))
    ]
    text = f"Template {settings['template']}, at most {settings['max_length']:,} tokens a sample."
    if results["identity"]:
        text += f" {results['identity']} identity conversations, {settings['identity_repeat']} times in training."
    if results["repeated_ids"]:
        text += f" {results['repeated_ids']:,} conversations had the id of an earlier one and were renamed."
    return Section("Splits", ("split", "samples", "tokens", "trained tokens", "share"), rows, text)


def _share(part: int, whole: int) -> Cell:
    return Share(part / whole) if whole else "-"


def _sources(results: Mapping[str, Any]) -> list[Section]:
    counts: list[tuple[Cell, ...]] = []
    reasons: list[tuple[Cell, ...]] = []
    for source, account in results["sources"].items():
        for what in ("conversations", "turns"):
            count = account[what]
            tokens: Cell = results["mixture"][source] if what == "conversations" else ""
            counts.append((source, what, count["read"], count["kept"], sum(count["dropped"].values()), tokens))
            dropped = Counter(count["dropped"]).most_common()
            reasons += [(source, what, Drop[name.upper()], number) for name, number in dropped]
    return [
        Section("Sources", ("source", "", "read", "kept", "dropped", "training tokens"), counts),
        Section("Dropped", ("source", "", "reason", "count"), reasons),
    ]


def _unknown_roles(results: Mapping[str, Any]) -> Section:
    text = "Turns of these roles were dropped. Map a role in its [[corpus.source]] table: roles = { NAME = 'user' }."
    return Section("Unknown roles", ("source", "role", "turns"), _by_source(results, "unknown_roles"), text)


def _placeholders(results: Mapping[str, Any]) -> Section:
    text = "Turns contain these placeholders. Fill them with rules in corpus.replace: '\\{\\{NAME\\}\\} => TEXT'."
    return Section("Placeholders", ("source", "name", "turns"), _by_source(results, "placeholders"), text)


def _by_source(results: Mapping[str, Any], field: str) -> list[tuple[Cell, ...]]:
    return [
        (source, name, count)
        for source, account in results["sources"].items()
        for name, count in Counter(account[field]).most_common()
    ]


def _languages(results: Mapping[str, Any]) -> Section:
    total = sum((Counter(account["languages"]) for account in results["sources"].values()), Counter[str]())
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[MOST_LANGUAGES:]
    others = [(f"{len(rest)} others", sum(count for _, count in rest))] if rest else []
    rows = [*ordered[:MOST_LANGUAGES], *others]
    return Section("Languages of the kept conversations", ("language", "conversations"), rows, chart=True)


def _changes(results: Mapping[str, Any]) -> Section:
    rows = [
        (source, Change[name.upper()], count)
        for source, account in results["sources"].items()
        for name, count in account["turns"]["changed"].items()
    ]
    text = "changed.jsonl lists the turns that the cleaning changed."
    return Section("Changed turns", ("source", "change", "turns"), rows, text)


def _rejected(results: Mapping[str, Any]) -> Section:
    shown = results["first_rejected"]
    rows = [(item["source"], item["offset"], item["reason"], item["detail"]) for item in shown]
    more = results["rejected"] - len(shown)
    text = "All of them are in rejected.jsonl" + (f"; {more:,} more than these." if more else ".")
    return Section("Rejected records", ("source", "at byte", "reason", "detail"), rows, text)


def _lengths(results: Mapping[str, Any]) -> Section:
    summary = ", ".join(f"{name} {value:,}" for name, value in results["lengths"].items())
    return Section("Tokens of a sample", ("up to", "samples"), results["histogram"], f"{summary}.", chart=True)


def _turns(results: Mapping[str, Any]) -> Section:
    rows = [(f"{turns} or more" if turns == MOST_TURNS else turns, count) for turns, count in results["turns"]]
    return Section("Turns of a sample", ("turns", "samples"), rows, chart=True)


def _packs(results: Mapping[str, Any]) -> Section:
    rows = [
        (int(budget), item["packs"], Share(item["fullness"]), Share(item["padded"]), item["over"])
        for budget, item in results["packs"].items()
    ]
    heading = ("tokens", "packs", "full", "full with one sample each", "samples longer than that")
    shared = results["shared_prefix"]
    text = "Training samples packed as in training, at different token budgets."
    text += f" Their common prefix of {shared:,} tokens is in a pack once." if shared else ""
    return Section("How full packs get", heading, rows, text)


def _escape(text: str) -> str:
    """Untrusted text for a Markdown table: no control characters, no markup, no HTML."""
    return printable(text).translate(_MARKDOWN)


def marked(pieces: Sequence[Piece], colour: bool) -> str:
    """A rendered sample with the trained tokens in green, or in ⟦ ⟧ without colour.

    Control characters are escaped, so that a conversation cannot steer the terminal.
    """
    start, end = (GREEN, PLAIN) if colour else ("⟦", "⟧")
    out, was_trained = [], False
    for piece in pieces:
        if piece.trained != was_trained:
            out.append(start if piece.trained else end)
            was_trained = piece.trained
        out.append(printable(piece.text, keep="\n") if isinstance(piece, Span) else piece.text)
    return "".join(out) + (end if was_trained else "")
