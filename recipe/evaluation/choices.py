"""Multiple choice by log-likelihood: the choice that the model finds likeliest as its answer.

Read are JSON Lines in the forms of the published sets: `question`, `choices` (a list of texts) and `answer` (an index,
a letter or the text), as MMLU has it; `choices` as {"text": [...], "label": [...]} with `answerKey` (ARC); `ctx` or
`query` with `endings` and `label` (HellaSwag).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.conversations.messages import Message
from recipe.conversations.templates import render
from recipe.conversations.tokens import encode, encoders
from recipe.core.errors import RecipeError
from recipe.core.text import snippet
from recipe.evaluation.texts import Sample

FORMS = "question, choices and answer (or answerKey), or ctx, endings and label"


@dataclass(frozen=True)
class Question:
    """A question, its choices and the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read(path: Path) -> list[Question]:
    """The questions of a file. Raises RecipeError: no such file, none in it, or a bad line, by number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}: pass JSON Lines with {FORMS}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}): convert it first") from None
    out = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                out.append(_question(json.loads(line)))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise RecipeError(f"{path}, line {number}: {snippet(error)}; expected {FORMS}") from None
    if not out:
        raise RecipeError(f"{path} holds no question: expected JSON Lines with {FORMS}")
    return out


def _question(record: Any) -> Question:
    if not isinstance(record, dict):
        raise TypeError(f"found a {type(record).__name__}")
    if "endings" in record:
        question, choices, answer = record.get("ctx", record.get("query")), record["endings"], record["label"]
        labels: Sequence[Any] = range(len(choices))
    else:
        question, choices = record["question"], record["choices"]
        answer = record["answerKey"] if "answerKey" in record else record["answer"]
        labels = range(len(choices))
        if isinstance(choices, dict):
            choices, labels = choices["text"], choices["label"]
    texts = [str(choice) for choice in choices]
    if not isinstance(question, str) or not question.strip() or len(texts) < 2 or not all(map(str.strip, texts)):
        raise ValueError("found no question, or not two choices with text")
    return Question(question, tuple(texts), _index(answer, texts, list(labels)))


def _index(answer: Any, texts: list[str], labels: list[Any]) -> int:
    """Where the answer is among the choices: by its label, its letter, its number or its text."""
    text = str(answer).strip()
    for names in ([str(label) for label in labels], [chr(ord("A") + at) for at in range(len(texts))], texts):
        if text in names:
            return names.index(text)
    raise ValueError(f"found the answer {snippet(text, 40)!r}, which is not a choice")


def samples(tokenizer: Any, template: str, questions: Sequence[Question], limit: int) -> list[Sample]:
    """One sample for each choice of each question, in order: the choice as the answer, a loss on it alone.

    The end of the answer is not scored: a choice must not win because it looks finished. Raises RecipeError where a
    choice has no tokens, or where a question with a choice exceeds `limit` tokens.
    """
    out = []
    for item in questions:
        for choice in item.choices:
            pieces = render(template, [Message("user", item.question), Message("assistant", choice)])
            ids, labels = encode(tokenizer, pieces)
            last = max((at for at, label in enumerate(labels) if label != -100), default=-1)
            labels = [*labels[:last], -100, *labels[last + 1 :]] if last >= 0 else labels
            if not encoders(tokenizer).ids(choice, leading=False) or all(label == -100 for label in labels[1:]):
                raise RecipeError(f"the choice {snippet(choice, 40)!r} has no tokens: the question cannot be scored")
            if len(ids) > limit:
                raise RecipeError(
                    f"the question {snippet(item.question, 40)!r} has {len(ids)} tokens, expected at most "
                    f"train.micro_batch_tokens = {limit}: shorten it, or pass --set train.micro_batch_tokens=N"
                )
            out.append(Sample.of(ids, labels, choice))
    return out


def hits(questions: Sequence[Question], nll: Sequence[float], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Whether each question is answered right (1 or 0): by the likeliest choice, and by the likeliest per byte.

    nll: nats of every choice, in the order of `samples`; sizes: their bytes.
    """
    plain, by_byte, at = [], [], 0
    for item in questions:
        count = len(item.choices)
        mine, width = nll[at : at + count], sizes[at : at + count]
        at += count
        plain.append(int(min(range(count), key=mine.__getitem__) == item.answer))
        scaled = [value / max(1, size) for value, size in zip(mine, width, strict=True)]
        by_byte.append(int(min(range(count), key=scaled.__getitem__) == item.answer))
    return plain, by_byte
