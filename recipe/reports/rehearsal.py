"""A rehearsal's measurements for people: one table, and the rows of the README."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.text import markdown_table, printable, table

README_HEAD = ("device", "base", "memory, MiB", "plan", "tokens/s", "at the matmul limit", "measured")


def text(result: Mapping[str, Any]) -> str:
    """Everything that was measured beside what was planned."""
    memory, speed, checks = result["memory"], result["speed"], result["checks"]
    planned = speed["planned_tokens_per_second"]
    rows = [
        ["", "measured", "planned"],
        ["peak memory, MiB", f"{memory['measured_mib']:,.0f}", f"{memory['planned_mib']:,.0f}"],
        ["reserved by the allocator, MiB", _number(memory["reserved_mib"]), ""],
        [
            "tokens/s",
            f"{speed['tokens_per_second']:,.1f}",
            _range(planned) + " at most" if planned else "no known rate",
        ],
        ["tokens/s at this device's matmul rate", "", f"{speed['limit_tokens_per_second']:,.1f} at most"],
        [_tokens(result), _hours(result["hours"]["measured"]), _range(result["hours"]["planned"])],
        ["save, seconds", f"{checks['save_seconds']:.2f}", ""],
        ["validate one pack, seconds", f"{checks['evaluate_seconds']:.2f}", ""],
        ["resumed loss minus the loss", f"{checks['resume_difference']:.1e}", "0"],
        ["loader, tokens/s", f"{result['loader_tokens_per_second']:,.0f}", ""],
        ["disk, MB/s written, read", "{write_mb_s:,.0f}, {read_mb_s:,.0f}".format(**result["disk"]), ""],
        ["int8, error against fp32", f"{checks['int8_error']:.1e}", f"{checks['tolerance']:.0e} at most"],
        ["attention, error against fp32", f"{checks['attention_error']:.1e}", f"{checks['tolerance']:.0e} at most"],
    ]
    return f"{heading(result)}\n\n{table(rows, right=(1,))}\n\n{matmul_table(result['matmul'])}"


def heading(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    return (
        f"{result['config']} on {printable(result['device']['name'])}: {base(result)}, {settings['steps']} steps of "
        f"{settings['packs_per_step']} packs of {settings['micro_batch_tokens']:,} tokens, "
        f"{settings['recomputed_layers']} of {result['shape']['num_hidden_layers']} layers recomputed"
    )


def base(result: Mapping[str, Any]) -> str:
    """The shape of the base, as `30 layers of 576/1536 in int8`."""
    shape = result["shape"]
    return (
        f"{shape['num_hidden_layers']} layers of {shape['hidden_size']}/{shape['intermediate_size']} in "
        f"{result['settings']['precision']}"
    )


def matmul_table(rows: Iterable[Mapping[str, Any]]) -> str:
    cells = [["matmul", "fp32 accumulation, TFLOP/s", "fp16 accumulation", "its error"]]
    for row in rows:
        fp16 = "" if row["fp16_tflops"] is None else f"{row['fp16_tflops']:.2f}"
        error = "" if row["fp16_error"] is None else f"{row['fp16_error']:.1e}"
        cells.append([f"{row['fan_in']} to {row['fan_out']}", f"{row['fp32_tflops']:.3g}", fp16, error])
    return table(cells, right=(1, 2, 3))


def readme_table(folder: Path) -> str:
    """The newest rehearsal of each device and config in `folder`, as a Markdown table."""
    rows = [list(README_HEAD)]
    for result in read_all(folder):
        memory, speed = result["memory"], result["speed"]
        rows.append([
            result["device"]["name"],
            base(result),
            f"{memory['measured_mib']:,.0f}",
            f"{memory['planned_mib']:,.0f}",
            f"{speed['tokens_per_second']:,.0f}",
            f"{speed['limit_tokens_per_second']:,.0f}",
            result["date"],
        ])  # fmt: skip
    return markdown_table(rows)


def read_all(folder: Path) -> list[dict[str, Any]]:
    """The rehearsals in `folder`, by file name. Raises RecipeError for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            base(result), result["device"]["name"], result["memory"]["measured_mib"], result["date"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RecipeError(f"{path} is not the result of a rehearsal: remove it, or run recipe.rehearse") from None
        found.append(result)
    return found


def _tokens(result: Mapping[str, Any]) -> str:
    return f"hours for {result['hours']['tokens']:,} tokens"


def _hours(value: float) -> str:
    return f"{value:,.1f}"


def _range(values: list[float] | None) -> str:
    return f"{min(values):,.1f} to {max(values):,.1f}" if values else ""


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
