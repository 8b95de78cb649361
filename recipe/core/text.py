"""Text for people: messages and progress on stderr, results on stdout, tables, untrusted text made printable."""

import contextlib
import io
import json
import os
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

SAFE = "\u200d\u3000"  # joiner of emoji, ideographic space: unprintable to Python, harmless to terminals
_bars: "weakref.WeakSet[Any]" = weakref.WeakSet()
_muted_as = ""


def mute(name: str) -> None:
    """From now on this process only says errors, after its `name`: it is one of several that do the same."""
    global _muted_as
    _muted_as = name


def say(message: str, error: bool = False) -> None:
    """Print a message on stderr. Never raises: a closed terminal or pipe must not stop a run."""
    if _muted_as:
        if not error:
            return
        message = f"{_muted_as}: {message}"
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def show(result: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print the result on stdout: `text` for a person, or one JSON object."""
    if _muted_as:
        return
    ascii_only = getattr(sys.stdout, "encoding", None) not in ("utf-8", "UTF-8")
    print(json.dumps(result, ensure_ascii=ascii_only, sort_keys=True) if as_json else text)


def open_standard_streams() -> None:
    """Open the standard streams that are closed on the null device: else the next file that is opened has the number
    of one, and what a library prints goes into that file."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def print_any_text() -> None:
    """Let stdout print characters that its encoding lacks as escapes, as stderr does: LC_ALL=C must not end a stage."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            sys.stdout.reconfigure(errors="backslashreplace")


def progress(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar on stderr; in a log file, one line every half minute instead of ten a second."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    options.setdefault("disable", bool(_muted_as))
    bar = tqdm(items, file=_Quiet(sys.stderr), dynamic_ncols=True, mininterval=30 if quiet else 0.2, **options)
    _bars.add(bar)
    return bar


def lasting_stderr() -> contextlib.AbstractContextManager[Any]:
    """A stderr that never raises, for bars of libraries: its reader may be gone, as in `make weights 2>&1 | head`."""
    return contextlib.redirect_stderr(cast(io.TextIOBase, _Quiet(sys.stderr)))


def close_bars() -> None:
    """Close every progress bar that is still open, so that the next message starts on a line of its own."""
    for bar in list(_bars):
        with contextlib.suppress(Exception):
            bar.close()
    _bars.clear()


class _Quiet:
    """A stream whose writes never raise, for the progress bar: see `say`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def printable(text: str, keep: str = "") -> str:
    """Untrusted text for a terminal or a page: control, format and bidirectional characters are escaped.

    Characters in `keep` (a line break, a tab) stay as they are.
    """
    return "".join(c if c.isprintable() or c in keep or c in SAFE else repr(c)[1:-1] for c in text)


def snippet(value: object, limit: int = 120) -> str:
    """Untrusted text inside an error message: printable, and cut to `limit` characters."""
    text = printable(str(value)[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells as aligned columns; the first row is the heading. The columns in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [cell.rjust(width) if number in right else cell.ljust(width) for number, (cell, width) in pairs]
        for pairs in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
    lines = ["  ".join(row).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table; the first row is the heading. Cells are escaped by `markdown`."""
    head, *body = (f"| {' | '.join(markdown(cell) for cell in row)} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body])


def markdown(text: str) -> str:
    """Untrusted text inside Markdown, on one line: no HTML, no new cell."""
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("|", "\\|")
