"""Instructions that rules can judge, in the spirit of IFEval (Zhou et al. 2023, arXiv:2311.07911): no judge model.

The prompts and their rules are this project's own: instructions.jsonl, one object a line with `id`, `prompt` and
`rules`. A prompt is followed if all its rules hold. Strict accuracy judges the answer as it is; loose accuracy forgives
a first or last line of small talk and Markdown emphasis.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError

FILE = Path(__file__).with_name("instructions.jsonl")
Rule = Mapping[str, Any]


@dataclass(frozen=True)
class Instruction:
    """A prompt and the rules that an answer has to keep."""

    id: str
    prompt: str
    rules: tuple[Rule, ...]


def read(path: Path = FILE) -> list[Instruction]:
    """The instructions of a file. Raises RecipeError on a line that is not one, with its number."""
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            item = json.loads(line)
            instruction = Instruction(str(item["id"]), str(item["prompt"]), tuple(item["rules"]))
            unknown = {rule["rule"] for rule in instruction.rules} - CHECKS.keys()
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{path}, line {number}: expected id, prompt and rules ({error!r}); fix the line"
            ) from None
        if unknown or not instruction.rules:
            known = ", ".join(CHECKS)
            raise RecipeError(f"{path}, line {number}: found rules {sorted(unknown)}, expected some of {known}")
        out.append(instruction)
    return out


def follows(instruction: Instruction, answer: str, loose: bool = False) -> bool:
    """Whether the answer keeps every rule; with `loose`, whether any of its variants does."""
    variants = _variants(answer) if loose else [answer]
    return any(
        bool(text.strip()) and all(CHECKS[rule["rule"]](text, rule) for rule in instruction.rules) for text in variants
    )


def followed(instructions: Iterable[Instruction], answers: Iterable[str], loose: bool) -> list[int]:
    """Whether each answer follows its prompt: 1 or 0."""
    return [int(follows(item, answer, loose)) for item, answer in zip(instructions, answers, strict=True)]


def _variants(answer: str) -> Iterator[str]:
    """The answer without its first line, its last line, both, each with and without Markdown emphasis."""
    lines = answer.strip().split("\n")
    for first in (0, 1):
        for last in (len(lines), len(lines) - 1):
            text = "\n".join(lines[first:last]).strip()
            yield text
            yield text.replace("*", "")


def _between(count: int, rule: Rule) -> bool:
    return rule.get("least", 0) <= count <= rule.get("most", count)


def _words(text: str, rule: Rule) -> bool:
    return _between(len(re.findall(r"\w+(?:['’-]\w+)*", text)), rule)


def _sentences(text: str, rule: Rule) -> bool:
    return _between(len(re.findall(r"[^.!?]*\w[^.!?]*(?:[.!?]+|\Z)", text)), rule)


def _paragraphs(text: str, rule: Rule) -> bool:
    return _between(len([part for part in re.split(r"\n\s*\n", text) if part.strip()]), rule)


def _lines(text: str, rule: Rule) -> bool:
    return _between(len([line for line in text.splitlines() if line.strip()]), rule)


def _bullets(text: str, rule: Rule) -> bool:
    return _between(len(re.findall(r"^\s*[-*•]\s+\S", text, re.M)), rule)


def _numbered(text: str, rule: Rule) -> bool:
    """A list numbered 1, 2, 3, ... without gaps."""
    numbers = [int(number) for number in re.findall(r"^\s*(\d{1,4})[.)]\s+\S", text, re.M)]
    return numbers == list(range(1, len(numbers) + 1)) and _between(len(numbers), rule)


def _contains(text: str, rule: Rule) -> bool:
    return all(_occurrences(text, word) >= rule.get("least", 1) for word in rule["words"])


def _lacks(text: str, rule: Rule) -> bool:
    return not any(_occurrences(text, word) for word in rule["words"])


def _occurrences(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I))


def _lacks_character(text: str, rule: Rule) -> bool:
    return not set(rule["characters"]) & set(text)


def _starts(text: str, rule: Rule) -> bool:
    return text.strip().casefold().startswith(rule["text"].casefold())


def _ends(text: str, rule: Rule) -> bool:
    return text.strip().casefold().endswith(rule["text"].casefold())


def _case(text: str, rule: Rule) -> bool:
    """Only upper-case or only lower-case letters, and some of them."""
    wanted = text.upper() if rule["is"] == "upper" else text.lower()
    return text == wanted and any(letter.isalpha() for letter in text)


def _json(text: str, rule: Rule) -> bool:
    """A JSON object and nothing else, maybe inside a code fence, with at least these keys."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", text, re.S)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(rule.get("keys", ())) <= value.keys()


def _one_of(text: str, rule: Rule) -> bool:
    """Exactly one of the given answers, a full stop or quotation marks aside."""
    return text.strip().strip(".\"'").casefold() in {choice.casefold() for choice in rule["choices"]}


def _language(text: str, rule: Rule) -> bool:
    from recipe.conversations.cleaning.filters import language
    from recipe.conversations.messages import Message

    return language([Message("user", ""), Message("assistant", text)]) == rule["code"]


CHECKS: dict[str, Callable[[str, Rule], bool]] = {
    "words": _words,
    "sentences": _sentences,
    "paragraphs": _paragraphs,
    "lines": _lines,
    "bullets": _bullets,
    "numbered": _numbered,
    "contains": _contains,
    "lacks": _lacks,
    "lacks_character": _lacks_character,
    "starts": _starts,
    "ends": _ends,
    "case": _case,
    "json": _json,
    "one_of": _one_of,
    "language": _language,
}
