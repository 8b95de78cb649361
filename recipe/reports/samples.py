"""samples.md: numbers and answers of base and tuned model, for people."""

from collections.abc import Mapping
from typing import Any

from recipe.core.text import markdown, printable


def samples(result: Mapping[str, Any]) -> str:
    """Numbers and answers as Markdown; every line of an answer is indented, so it is never rendered as Markdown."""
    lines = ["# Base and tuned model", "", "| | base | tuned |", "| --- | --- | --- |"]
    for key, title in (("loss", "validation loss"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte")):
        lines.append(f"| {title} | {result['base'][key]:.4f} | {result['tuned'][key]:.4f} |")
    if found := result.get("identity"):
        base, tuned = (f"{found[f'{model}_hits']} of {found['total']}" for model in ("base", "tuned"))
        lines.append(f"| taught name in the answer | {base} | {tuned} |")
    for answer in result["answers"]:
        lines += answer_lines(answer)
    return "\n".join(lines) + "\n"


def answer_lines(answer: Mapping[str, str]) -> list[str]:
    """A question as a heading, and both answers as blocks of plain text."""
    lines = ["", f"## {markdown(answer['question'])}"]
    for model in ("base", "tuned"):
        quoted = "\n".join(f"    {line}" for line in printable(answer[model], keep="\n\t").splitlines())
        lines += ["", f"**{model}**", "", quoted or "    (an empty answer)"]
    return lines
