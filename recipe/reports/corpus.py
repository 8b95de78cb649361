"""A prepared corpus for a person: its numbers, the account as Markdown, samples with trained tokens marked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from recipe.conversations.cleaning.accounting import Change, Drop
from recipe.conversations.templates import Piece, Span
from recipe.core.text import printable

BAR = 40  # characters of the longest bar
MOST_LANGUAGES = 12  # shown apart
MOST_TURNS = 20  # longer conversations share the last bar
GREEN, PLAIN = "\033[32m", "\033[0m"
Section = tuple[str, str, list[list[str]]]  # title, text, table with its heading first


def markdown(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The corpus's report, from the manifest's results and settings."""
    lines = ["# Corpus"]
    for title, text, rows in sections(results, settings):
        lines += ["", f"## {title}", ""] + ([text, ""] if text else [])
        if rows and title.startswith("Tokens of"):
            lines += ["```", "   up to   samples", *_bars(rows[1:]), "```"]
        elif rows:
            heading, *others = [[_cell(cell) for cell in row] for row in rows]
            lines += [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
            lines += [f"| {' | '.join(row)} |" for row in others]
    return "\n".join(lines) + "\n"


def sections(results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Section]:
    """What both reports tell, in order; nothing in it is escaped."""
    out = [_parts(results, settings), *_sources(results), _languages(results), _changes(results), _rejected(results)]
    return [section for section in [*out, _lengths(results), _turns(results), _packs(results)] if section[2]]


def _parts(results: Mapping[str, Any], settings: Mapping[str, Any]) -> Section:
    samples, tokens, trained = results["samples"], results["tokens"], results["trained_tokens"]
    rows = [["part", "samples", "tokens", "trained tokens", "share"]]
    for part in ("train", "val"):
        share = f"{trained[part] / tokens[part]:.1%}" if tokens[part] else "-"
        rows.append([part, f"{samples[part]:,}", f"{tokens[part]:,}", f"{trained[part]:,}", share])
    text = f"Template {settings['template']}, at most {settings['max_length']:,} tokens a sample."
    if results["identity"]:
        text += f" {results['identity']} identity conversations, {settings['identity_repeat']}-fold where trained on."
    if results["repeated_ids"]:
        text += f" {results['repeated_ids']:,} conversations had the id of an earlier one and got one of their own."
    return "Parts", text, rows


def _sources(results: Mapping[str, Any]) -> list[Section]:
    counts = [["source", "", "read", "kept", "dropped", "tokens to train on"]]
    reasons = [["source", "", "reason", "count"]]
    for source, account in results["sources"].items():
        for what in ("conversations", "turns"):
            count = account[what]
            row = [source, what, *(f"{number:,}" for number in (count["read"], count["kept"]))]
            tokens = f"{results['mixture'][source]:,}" if what == "conversations" else ""
            counts.append([*row, f"{sum(count['dropped'].values()):,}", tokens])
            dropped = Counter(count["dropped"]).most_common()
            reasons += [[source, what, Drop[name.upper()], f"{n:,}"] for name, n in dropped]
    return [("Sources", "", counts), ("Dropped", "", reasons if reasons[1:] else [])]


def _languages(results: Mapping[str, Any]) -> Section:
    total = sum((Counter(account["languages"]) for account in results["sources"].values()), Counter[str]())
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[MOST_LANGUAGES:]
    rows = [[name, f"{count:,}"] for name, count in ordered[:MOST_LANGUAGES]]
    rows += [[f"{len(rest)} others", f"{sum(count for _, count in rest):,}"]] if rest else []
    return "Languages of the conversations kept", "", [["language", "conversations"], *rows] if rows else []


def _changes(results: Mapping[str, Any]) -> Section:
    rows = [
        [source, Change[name.upper()], f"{count:,}"]
        for source, account in results["sources"].items()
        for name, count in account["turns"]["changed"].items()
    ]
    return "Turns changed", "", [["source", "what was done", "turns"], *rows] if rows else []


def _rejected(results: Mapping[str, Any]) -> Section:
    shown = results["first_rejected"]
    rows = [[item["source"], f"{item['offset']:,}", item["reason"], item["detail"]] for item in shown]
    more = results["rejected"] - len(shown)
    text = "All of them are in rejected.jsonl" + (f"; {more:,} more than these." if more else ".")
    return "Rejected records", text, [["source", "at byte", "reason", "detail"], *rows] if rows else []


def _lengths(results: Mapping[str, Any]) -> Section:
    summary = ", ".join(f"{name} {value:,}" for name, value in results["lengths"].items())
    rows = [[f"{edge:,}", f"{count:,}"] for edge, count in results["histogram"]]
    return "Tokens of a sample", f"{summary}.", [["up to", "samples"], *rows]


def _turns(results: Mapping[str, Any]) -> Section:
    rows = [[f"{number}{' or more' * (number == MOST_TURNS)}", f"{count:,}"] for number, count in results["turns"]]
    return "Turns of a sample", "", [["turns", "samples"], *rows]


def _packs(results: Mapping[str, Any]) -> Section:
    rows = [
        [budget, f"{item['packs']:,}", f"{item['fullness']:.1%}", f"{item['padded']:.1%}", f"{item['over']:,}"]
        for budget, item in results["packs"].items()
    ]
    heading = ["tokens", "packs", "full", "full with one sample each", "samples longer than that"]
    return "How full packs get", "Training samples side by side, longest first.", [heading, *rows]


def _bars(rows: Sequence[Sequence[str]]) -> list[str]:
    counts = [int(count.replace(",", "")) for _, count in rows]
    most = max(counts)
    bars = ["█" * -(-BAR * count // most) for count in counts]
    return [f"{edge:>8} {count:>9} {bar}".rstrip() for (edge, count), bar in zip(rows, bars, strict=True)]


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def marked(pieces: Sequence[Piece], colour: bool) -> str:
    """A rendered sample; what has a loss is green, or in ⟦ ⟧ where there is no colour. Control characters are escaped,
    so that a conversation cannot steer the terminal."""
    start, end = (GREEN, PLAIN) if colour else ("⟦", "⟧")
    out, was_trained = [], False
    for piece in pieces:
        if piece.trained != was_trained:
            out.append(start if piece.trained else end)
            was_trained = piece.trained
        out.append(printable(piece.text, keep="\n") if isinstance(piece, Span) else piece.text)
    return "".join(out) + (end if was_trained else "")
