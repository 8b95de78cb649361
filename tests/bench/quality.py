"""The quality of a prepared corpus, measured against the raw conversations: what it keeps, and what it changes."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_FENCE = re.compile(r"^```[^\n`]*\n.*?^```", re.M | re.S)
_TABLE = re.compile(r"^\|.*\n\|[ :|-]+\|[ ]*\n(?:\|.*(?:\n|\Z))+", re.M)
_REMNANT = re.compile(r"Copy code$|Copy ?[\d,]+ chars / [\d,]+ words|\A\s*\d+ / \d+\s*\n|\n\s*\d+ / \d+\s*\Z", re.M)
_LETTERS = re.compile(r"[\W_]+")
START = 80  # letters that identify a turn

Turns = list[str]
MORE_IS_BETTER = {
    "turns_kept": "turns kept",
    "last_answers_kept": "last answers kept",
    "turns_unchanged": "turns of plain text kept byte for byte",
    "code_blocks_unchanged": "code blocks in kept turns with language and indentation unchanged",
    "tables_unchanged": "tables in kept turns unchanged",
}
LESS_IS_BETTER = {
    "turns_with_remnants": "turns with remnants of the chat page (Copy code, 1 / 2)",
    "samples_over_the_limit": "samples over the token limit, which training would truncate",
}


def shares(raw: Iterable[tuple[str, Turns]], made: Iterable[tuple[str, Turns]]) -> dict[str, float]:
    """Shares of the `raw` conversations, (id, turns) each, that the `made` samples, (same id, turns), keep."""
    there: defaultdict[str, Turns] = defaultdict(list)
    for name, turns in made:
        there[name] += turns
    count: defaultdict[str, list[bool]] = defaultdict(list)
    for name, turns in raw:
        texts, text = {turn.strip() for turn in there[name]}, "\0".join(there[name])
        starts = {_start(turn) for turn in there[name]}
        count["turns_kept"] += [_start(turn) in starts for turn in turns if turn.strip()]
        if len(turns) > 1:
            count["last_answers_kept"].append(_start(turns[-1]) in starts)
        count["turns_unchanged"] += [
            turn.strip() in texts for turn in turns if turn.strip() and "<" not in turn and not _REMNANT.search(turn)
        ]
        there_still = [turn for turn in turns if _start(turn) in starts]
        for what, pattern in (("code_blocks_unchanged", _FENCE), ("tables_unchanged", _TABLE)):
            blocks = [block for turn in there_still for block in pattern.findall(turn) if not _REMNANT.search(block)]
            count[what] += [block.strip() in text for block in blocks]
    out = {name: round(sum(found) / max(1, len(found)), 4) for name, found in count.items()}
    everything = [turn for turns in there.values() for turn in turns]
    out["turns_with_remnants"] = sum(1 for turn in everything if _REMNANT.search(_FENCE.sub(_heading, turn)))
    return out


def _heading(block: re.Match[str]) -> str:
    """The first two lines of a code block: the rest may be real code that contains the same words."""
    return "\n".join(block[0].split("\n")[:2])


def _start(turn: str) -> str:
    return _LETTERS.sub("", turn)[:START].casefold()


def at_least_as_good(ours: dict[str, Any], usual: dict[str, Any]) -> bool:
    return all(ours[name] >= usual[name] for name in MORE_IS_BETTER) and all(
        ours[name] <= usual[name] for name in LESS_IS_BETTER
    )


def table(ours: dict[str, Any], usual: dict[str, Any]) -> str:
    """Both as Markdown."""
    rows = [f"| {text} | {usual[name]:.1%} | {ours[name]:.1%} |" for name, text in MORE_IS_BETTER.items()]
    rows += [f"| {text} | {usual[name]:,} | {ours[name]:,} |" for name, text in LESS_IS_BETTER.items()]
    return "\n".join(["| same conversations | usual | this recipe |", "| --- | --- | --- |", *rows])
