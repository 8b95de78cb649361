"""Samples of a prepared corpus file, as `recipe.corpus` writes them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.conversations.messages import Message
from recipe.conversations.templates import Piece, render
from recipe.core.errors import RecipeError


def read_samples(file: Path) -> Iterator[list[Message]]:
    """The messages of each line of a prepared train.jsonl or val.jsonl.

    Raises RecipeError if there is no such file, or if a line is not a sample.
    """
    if not file.is_file():
        raise RecipeError(f"no prepared corpus at {file}: run `python -m recipe.corpus` first")
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield [Message(**message) for message in json.loads(line)["messages"]]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise RecipeError(
                    f"{file}, line {number}: not a sample ({type(error).__name__}), expected a JSON object with "
                    "messages; run `python -m recipe.corpus` again"
                ) from None


def render_sample(template: str, sample: dict[str, Any]) -> list[Piece]:
    """A line of a prepared file as the pieces that are trained on."""
    return render(template, [Message(**message) for message in sample["messages"]])
