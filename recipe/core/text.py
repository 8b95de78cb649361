"""Text for people: messages and progress on stderr, the result on stdout, tables, untrusted text made printable."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

SAFE = "\u200d\u3000"  # emoji joiner, ideographic space: not printable to Python, harmless to a terminal


def say(message: str) -> None:
    """A line for the person, on stderr."""
    print(message, file=sys.stderr, flush=True)


def show(result: Mapping[str, Any], text: str, as_json: bool) -> None:
    """The result on stdout: `text` for a person, or one JSON object."""
    print(json.dumps(result, ensure_ascii=False, sort_keys=True) if as_json else text)


def progress(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar on stderr; in a log file one line every half minute instead of one a tenth of a second."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    return tqdm(items, file=sys.stderr, dynamic_ncols=True, mininterval=30 if quiet else 0.2, **options)


def printable(text: str, keep: str = "") -> str:
    """Untrusted text for a terminal or a page: control, format and bidirectional characters are escaped, not obeyed.

    Characters in `keep` (a line break, a tab) stay as they are.
    """
    return "".join(c if c.isprintable() or c in keep or c in SAFE else repr(c)[1:-1] for c in text)


def snippet(value: object, limit: int = 120) -> str:
    """Untrusted text inside an error message: printable, and cut to `limit` characters."""
    text = printable(str(value)[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


def table(rows: list[list[str]]) -> str:
    """Rows of cells as aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
