"""A prepared corpus for a person: the account as Markdown, samples with what is trained on marked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipe.conversations.accounting import Drop
from recipe.conversations.templates import Piece, Span

BAR = 40  # characters of the longest bar
SHOWN_REJECTED = 20
GREEN, PLAIN = "\033[32m", "\033[0m"


def lengths(values: Iterable[int]) -> dict[str, float]:
    """Smallest, median, mean, 90th percentile and largest, by nearest rank."""
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "mean": round(sum(ordered) / len(ordered), 1),
        "p90": ordered[(9 * len(ordered) + 9) // 10 - 1],
        "max": ordered[-1],
    }


def histogram(values: Iterable[int], limit: int, bins: int = 16) -> list[tuple[int, int]]:
    """(upper edge, how many values are at most that and above the edge before) up to `limit`."""
    width = -(-limit // bins)
    counts = [0] * bins
    for value in values:
        counts[(value - 1) // width] += 1
    return [(min(limit, width * (index + 1)), count) for index, count in enumerate(counts)]


def markdown(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The corpus's report, from the manifest's results and settings."""
    samples, tokens, trained = results["samples"], results["tokens"], results["trained_tokens"]
    lines = [
        "# Corpus",
        "",
        f"Template `{settings['template']}`, at most {settings['max_length']:,} tokens a sample, "
        f"{results['identity']} identity conversations ({settings['identity_repeat']} times in the training part).",
        "",
        "| part | samples | tokens | trained tokens | share |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for part in ("train", "val"):
        share = f"{trained[part] / tokens[part]:.1%}" if tokens[part] else "-"
        lines.append(f"| {part} | {samples[part]:,} | {tokens[part]:,} | {trained[part]:,} | {share} |")
    lines += ["", "## Sources", "", "| source | | read | kept | dropped |", "| --- | --- | ---: | ---: | ---: |"]
    for source, account in results["sources"].items():
        for what in ("conversations", "turns"):
            count = account[what]
            dropped = sum(count["dropped"].values())
            lines.append(f"| {_cell(source)} | {what} | {count['read']:,} | {count['kept']:,} | {dropped:,} |")
    lines += ["", "## Dropped", "", "| source | | reason | |", "| --- | --- | --- | ---: |"]
    for source, account in results["sources"].items():
        for what in ("conversations", "turns"):
            for reason, count in account[what]["dropped"].items():
                lines.append(f"| {_cell(source)} | {what} | {Drop[reason.upper()]} | {count:,} |")
    lines += _rejected(results["rejected"]) + _lengths(results["lengths"], results["histogram"])
    return "\n".join(lines) + "\n"


def _rejected(rejected: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rejected:
        return []
    shown = [
        f"- {printable(item['source'])}, byte {item['offset']:,}: {item['reason']}: {printable(item['detail'])}"
        for item in rejected[:SHOWN_REJECTED]
    ]
    more = len(rejected) - len(shown)
    return ["", "## Rejected records", "", *shown, *([f"- and {more:,} more"] if more else [])]


def _lengths(summary: Mapping[str, float], counts: Sequence[tuple[int, int]]) -> list[str]:
    most = max(count for _, count in counts)
    bars = [f"{edge:>8,} {count:>9,} {'█' * -(-BAR * count // most)}" for edge, count in counts]
    return [
        "",
        "## Tokens of a sample",
        "",
        f"| {' | '.join(summary)} |",
        f"|{' ---: |' * len(summary)}",
        f"| {' | '.join(f'{value:,}' for value in summary.values())} |",
        "",
        "```",
        "   up to   samples",
        *bars,
        "```",
    ]


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
        out.append(printable(piece.text, keep="\n") if isinstance(piece, Span) else f"<{piece.name}>")
    return "".join(out) + (end if was_trained else "")


def printable(text: str, keep: str = "") -> str:
    """`text` with control, format and other unprintable characters as escapes, those in `keep` as they are."""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )
