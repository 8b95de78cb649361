"""A conversation as spans of text, each trained on or not.

One place says how a turn looks; corpus, train, evaluate and chat all go through `render`, so that what is asked at the
end reads exactly like what was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from recipe.conversations.messages import Message
from recipe.core.errors import RecipeError, UsageError


@dataclass(frozen=True)
class Span:
    """Plain text: a literal `</s>` in it is five characters, never a special token."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Special:
    """A control token of the tokenizer. `bos` stands only where the tokenizer itself begins a text with one."""

    name: Literal["bos", "eos"]
    trained: bool


Piece = Span | Special


@dataclass(frozen=True)
class Template:
    """How a conversation reads, one (question, answer) pair after the other.

    `turn(system, question, answer)` renders a pair; `system` is given (maybe as "") for the first pair and None for
    later ones; `answer` is None where the model is to go on.
    """

    system: str
    turn: Callable[[str | None, str, str | None], list[Piece]]

    def render(self, messages: Sequence[Message], open_turn: bool = False) -> list[Piece]:
        """See `render`."""
        system, pairs = as_pairs(messages, open_turn)
        pieces: list[Piece] = []
        answers = [message for message in messages if message.role == "assistant"]
        for index, (question, answer) in enumerate(pairs):
            opening = self.system if system is None else system
            turn = self.turn(None if index else opening, question, answer)
            is_trained = answer is None or answers[index].trained
            pieces += turn if is_trained else [replace(piece, trained=False) for piece in turn]
        return pieces


def as_pairs(messages: Sequence[Message], open_turn: bool = False) -> tuple[str | None, list[tuple[str, str | None]]]:
    """The system text (None: the template's own) and the (question, answer) pairs; an open last turn has answer None.

    Raises RecipeError where the messages are anything but an optional system message and then user and assistant in
    turn: a silent repair here would train on something nobody wrote.
    """
    system = messages[0].content if messages and messages[0].role == "system" else None
    turns = messages[0 if system is None else 1 :]
    roles = [message.role for message in turns]
    expected = ["user", "assistant"] * ((len(turns) + 1) // 2)
    if not turns or roles != expected[: len(turns)] or len(turns) % 2 != open_turn:
        raise RecipeError(
            f"the turns are {', '.join(roles) or 'none'}; expected user and assistant in turn, ending with "
            f"{'user' if open_turn else 'assistant'}: prepare the conversations with recipe.corpus"
        )
    texts: list[str | None] = [message.content for message in turns]
    if open_turn:
        texts.append(None)
    return system, [(texts[index] or "", texts[index + 1]) for index in range(0, len(texts), 2)]


def _vicuna(system: str | None, question: str, answer: str | None) -> list[Piece]:
    """As FastChat renders its conversation template of the same name. The space before an answer belongs to it:
    it is the `▁` of the answer's first piece."""
    prompt = f"USER: {question} ASSISTANT:"
    pieces: list[Piece] = []
    if system is not None:
        pieces.append(Special("bos", trained=False))
        prompt = f"{system} {prompt}" if system else prompt
    pieces.append(Span(prompt, trained=False))
    if answer is not None:
        pieces += [Span(f" {answer}", trained=True), Special("eos", trained=True)]
    return pieces


TEMPLATES = {
    "vicuna_v1.1": Template(
        system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        turn=_vicuna,
    ),
}


def get(template: str) -> Template:
    """The template of that name. Raises UsageError naming the known ones."""
    if template not in TEMPLATES:
        raise UsageError(f"there is no template {template!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


def render(template: str, messages: Sequence[Message], open_turn: bool = False) -> list[Piece]:
    """The conversation as spans and special tokens, in order. Trained: every answer and the EOS after it,
    but for messages with trained=False.

    `messages`: an optional system message (else the template's own), then user and assistant in turn; with `open_turn`
    they end with the user and the last span is where the model goes on. Raises RecipeError otherwise.
    """
    return get(template).render(messages, open_turn)
