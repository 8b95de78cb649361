"""What a page shows of one run, before it is HTML or Markdown. Nothing in it is escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipe.reports.charts import Bar

Rows = Sequence[Sequence[object]]


@dataclass(frozen=True)
class Table:
    """A table with a heading row, and a sentence above it. `bars` are drawn below, under `bars_title`."""

    title: str
    rows: Rows
    text: str = ""
    bars: Sequence[Bar] = ()
    bars_title: str = ""


@dataclass(frozen=True)
class Tile:
    """A number that is seen first: what it was, what it is, and whether that is good, bad or neither."""

    title: str
    value: str
    before: str = ""
    tone: str = ""  # good, bad or nothing


@dataclass(frozen=True)
class RunView:
    """What the page shows of one run; `metrics` are the rows of metrics.jsonl."""

    name: str
    state: str
    headline: str
    metrics: Sequence[Mapping[str, Any]]
    warnings: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    tables: Sequence[Table] = ()
    answers: Sequence[Mapping[str, str]] = ()  # group, question, base, tuned
    facts: Mapping[str, str] = field(default_factory=dict)  # environment and hashes
    replay: Sequence[str] = ()  # commands

    def values(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of the rows of metrics that have it: those of a validation, or those of a step."""
        rows = [row for row in self.metrics if ("eval_loss" in row) == (key == "eval_loss")]
        return [
            (float(row["step"]), float(row[key]))
            for row in rows
            if isinstance(row.get(key), int | float) and isinstance(row.get("step"), int | float)
        ]
