"""What eval.json says, as rows and sentences: the same words in the terminal, in samples.md and in the report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MODELS = ("base", "tuned")
COLUMNS = (*MODELS, "difference")  # JSON files are sorted by key, so the order is named wherever it matters
HEADING = ["", "base", "tuned", "difference"]
Evaluation = Mapping[str, Any]
Rows = list[list[str]]


def summary(evaluation: Evaluation) -> Rows:
    """A row for each number of an evaluation, with 95 % intervals in brackets; the first row is the heading."""
    intervals = evaluation.get("intervals", {})
    rows = [HEADING]
    if loss := intervals.get("loss"):
        rows.append(["validation loss", *columns(loss)])
        rows.append(["perplexity", *perplexity(loss)])
        rows.append(["bits per byte", *columns(intervals["bits_per_byte"])])
    if probe := evaluation.get("forgetting"):
        rows.append(["unrelated text, bits per byte", *columns(probe)])
    for name, item in evaluation.get("texts", {}).items():
        rows.append([f"{name}, bits per byte", *columns(item["bits_per_byte"])])
        rows.append([f"{name}, perplexity", *perplexity(item["loss"])])
    for name, item in evaluation.get("choices", {}).items():
        rows.append([f"{name}, accuracy", *columns(item["accuracy"], share)])
        rows.append([f"{name}, accuracy by byte", *columns(item["accuracy_per_byte"], share)])
    if found := evaluation.get("instructions"):
        rows += [[f"instructions followed, {mode}", *columns(found[mode], share)] for mode in ("strict", "loose")]
    if found := evaluation.get("identity"):
        hits = (f"{found[f'{name}_hits']} of {found['total']}" for name in MODELS)
        rows.append(["knows its name", *hits, bounds(found["share"]["difference"], share)])
    return rows


def vote_rows(votes: Mapping[str, Any]) -> Rows:
    """The share of points of base and tuned, in all and by category."""
    rows = [["votes", "votes", *COLUMNS], ["all", str(votes["votes"]), *columns(votes, share)]]
    return rows + [[item["name"], str(item["votes"]), *columns(item, share)] for item in votes["by_category"]]


def warnings(evaluation: Evaluation) -> Iterator[str]:
    """What a user must not overlook, in sentences."""
    difference = evaluation.get("intervals", {}).get("loss", {}).get("difference")
    if difference and difference[1] > 0:
        yield f"the validation loss is higher than before, by {bounds(difference)}: the training made the model worse"
    elif difference and difference[2] >= 0:
        yield "the validation loss differs by no more than its interval: nothing shows that the model learned anything"
    probe = evaluation.get("forgetting")
    if probe and probe["worse"]:
        yield (
            f"the model forgot: on unrelated text it needs {bounds(probe['difference'])} bits per byte more than the "
            "base, and the interval does not reach zero"
        )


def headline(evaluation: Evaluation) -> str:
    """The outcome in a sentence or two."""
    if not evaluation:
        return "Not evaluated yet: run make evaluate."
    base, tuned = (evaluation[name]["loss"] for name in MODELS)
    text = f"Validation loss {base:.3f} before and {tuned:.3f} after"
    if difference := evaluation.get("intervals", {}).get("loss", {}).get("difference"):
        value, low, high = difference
        text += f": a difference of {value:.3f} (95 % interval {low:.3f} to {high:.3f})"
    if probe := evaluation.get("forgetting"):
        how = "worse than before" if probe["worse"] else "no worse than before"
        text += f". On unrelated text the tuned model is {how}"
    return f"{text}."


def columns(intervals: Mapping[str, Sequence[float]], show: Any = None) -> list[str]:
    """Base, tuned and difference, each with its interval."""
    return [bounds(intervals[name], show) for name in COLUMNS]


def bounds(values: Sequence[float], show: Any = None) -> str:
    """A value with its interval in brackets; the value alone where there are too few conversations for one."""
    show = show or number
    return show(values[0]) if len(values) == 1 else f"{show(values[0])} [{show(values[1])}, {show(values[2])}]"


def perplexity(loss: Mapping[str, Sequence[float]]) -> list[str]:
    """The exponential of the losses and of their bounds; a difference of perplexities says little, so there is none."""
    return [*(bounds([exp(value) for value in loss[name]], "{:.2f}".format) for name in MODELS), ""]


def exp(value: float) -> float:
    """e to the power of a loss; infinite where that overflows."""
    return math.exp(value) if value < 700 else math.inf


def number(value: float) -> str:
    return f"{value:.3f}"


def share(value: float) -> str:
    return f"{value:.1%}"
