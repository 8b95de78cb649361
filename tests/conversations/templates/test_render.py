"""The rendered text, against prompts that FastChat rendered."""

import json
from pathlib import Path

import pytest

from recipe.conversations.messages import Message
from recipe.conversations.templates import Span, Special, render
from recipe.core.errors import RecipeError, UsageError


def say(*texts: str, system: str | None = None) -> list[Message]:
    """Messages: user, assistant, user, ... after an optional system message."""
    start = [] if system is None else [Message("system", system)]
    return start + [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def as_text(pieces) -> str:
    return "".join(
        piece.text if isinstance(piece, Span) else {"bos": "", "eos": "</s>"}[piece.name] for piece in pieces
    )


def test_vicuna_is_what_fastchat_renders(assets: Path) -> None:
    golden = json.loads((assets / "golden" / "prompts.json").read_text(encoding="utf-8"))
    rendered = render("vicuna_v1.1", say("Hello!", "Hi!", "How are you?"), open_turn=True)
    assert as_text(rendered) == golden["vicuna_v1.1"]["prompt"]


def test_trained_are_the_answers_with_their_eos_and_nothing_else() -> None:
    pieces = render("vicuna_v1.1", say("one", "uno", "two", "dos"))
    assert [piece for piece in pieces if piece.trained] == [
        Span(" uno", True),
        Special("eos", True),
        Span(" dos", True),
        Special("eos", True),
    ]
    assert pieces[0] == Special("bos", False)
    assert sum(piece == Special("bos", False) for piece in pieces) == 1


def test_a_system_message_takes_the_templates_place() -> None:
    assert as_text(render("vicuna_v1.1", say("q", "a", system="Be brief."))) == "Be brief. USER: q ASSISTANT: a</s>"
    assert as_text(render("vicuna_v1.1", say("q", "a", system=""))) == "USER: q ASSISTANT: a</s>"


@pytest.mark.parametrize(
    ("messages", "open_turn"),
    [
        ([], False),
        (say("q"), False),
        (say("q", "a"), True),
        (say("q", "a")[::-1], False),
        ([Message("user", "q"), Message("user", "q"), Message("assistant", "a")], True),
        ([Message("user", "q"), Message("system", "s")], False),
    ],
)
def test_messages_that_do_not_alternate_are_refused(messages: list[Message], open_turn: bool) -> None:
    with pytest.raises(RecipeError, match="expected user and assistant in turn"):
        render("vicuna_v1.1", messages, open_turn)


def test_an_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no template 'vicuna'; expected one of vicuna_v1\.1, .*zephyr"):
        render("vicuna", say("q", "a"))
