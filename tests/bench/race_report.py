"""The table and the picture of the race, from the numbers of race.py."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def markdown(found: Mapping[str, Any]) -> str:
    """The table of the race, that of the trials, and what the numbers are."""
    from table import table

    targets = found["targets"]
    head = ["way", "learning rate", "seeds"]
    for number in range(1, len(targets) + 1):
        head += [f"tokens to target {number}", "times fewer", "seconds"]
    rows = []
    for name, one in found["ways"].items():
        cells = [f"{name}: {one['about']}", f"{one['learning_rate']:g}", len(one["loss"])]
        for target in targets:
            to = one["to"][target]
            reached = [tokens for tokens in to["tokens"] if tokens]
            missed = f", {len(to['tokens']) - len(reached)} not reached" if len(reached) < len(to["tokens"]) else ""
            most, least = ("at most ", "at least ") if to["bound"] else ("", "")
            seconds = f"{most}{to['seconds']:,}" if "seconds" in to else "-"
            cells += [
                most + span(reached, "{:,.0f}") + missed,
                least + span(to["times_fewer"], "{:.1f}"),
                seconds,
            ]
        end = f"{span(one['loss'], '{:.3f}')} at {max(one['tokens']):,} tokens"
        rows.append([*cells, end, span(one["memory_mb"], "{:,.0f}")])
    lines = [table([*head, "loss at its end", "peak memory, MB"], rows), ""]
    for number, (name, goal) in enumerate(targets.items(), 1):
        losses = ", ".join(f"{loss:.4f}" for loss in goal["losses"])
        lines.append(
            f"Target {number}: {goal['loss']:.4f}, the loss of `{name}` after {goal['tokens']:,} tokens ({losses})."
        )
    lines += [
        "Means over the seeds (lowest to highest). At most: the first validation was below the target already.",
        "",
    ]
    trials = [
        [f"{name}: {each['about']}", ", ".join(f"{rate}: {loss:.4f}" for rate, loss in each["losses"].items())]
        for name, each in found["trials"].items()
    ]
    return "\n".join([*lines, table(["way", "rate: loss at the end of a trial, on another seed"], trials), ""])


def span(values: Sequence[float], form: str) -> str:
    """The mean, and the lowest and highest if there are several."""
    if not values:
        return "-"
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def picture(found: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """Validation loss by tokens, a curve for each run, the targets as lines; tokens on a logarithmic axis. An SVG."""
    width, height, left, right, bottom = 720, 380, 60, 580, 330
    points = [point for one in runs for point in one["losses"]]
    least, most = min(tokens for tokens, _ in points), max(tokens for tokens, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)

    def across(tokens: float) -> float:
        return left + (right - left) * math.log(tokens / least) / math.log(most / least)

    def down(loss: float) -> float:
        return 20 + (bottom - 20) * (high - loss) / (high - low)

    def colour(number: int) -> str:
        return f"hsl({round(360 * number / len(names))} 65% 45%)"

    out, names = [], list(found["ways"])
    for one in runs:
        line = " ".join(f"{across(tokens):.0f},{down(loss):.0f}" for tokens, loss in one["losses"])
        stroke = colour(names.index(one["way"]))
        out.append(f'<polyline points="{line}" fill="none" stroke="{stroke}" stroke-width="2"/>')
    for number, goal in enumerate(found["targets"].values(), 1):
        y = down(goal["loss"])
        out.append(f'<path d="M{left} {y:.0f}H{right}" stroke="#6b7280" stroke-dasharray="4"/>')
        out.append(f'<text x="{left + 4}" y="{y - 5:.0f}">target {number}</text>')
    for number, name in enumerate(names):
        style = f"fill: {colour(number)}"
        out.append(f'<text x="{right + 20}" y="{30 + 20 * number}" style="{style}">{name}</text>')
    ticks = [count for count in (1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5) if least <= count <= most]
    labels = [(across(count) - 20, bottom + 22, f"{count:,.0f}") for count in ticks]
    labels += [(left, bottom + 42, "tokens trained on"), (0, 24, f"{high:.2f}"), (0, bottom, f"{low:.2f}")]
    out += [f'<text x="{x:.0f}" y="{y}">{text}</text>' for x, y, text in labels]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        "<title>Validation loss by tokens trained on, for each way</title>"
        f"<style>text {{ font: 13px sans-serif; fill: #6b7280 }}</style>{''.join(out)}</svg>\n"
    )
