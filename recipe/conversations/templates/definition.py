"""A chat template as data: the one definition that both the training mask and the Jinja text come from."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from recipe.conversations.messages import Message
from recipe.conversations.templates.pieces import Piece, Span, Special
from recipe.core.errors import RecipeError, UsageError

SLOTS = ("system", "user", "assistant")
# Which slot a field must contain, exactly once, and nowhere else.
FIELDS = {
    "begin": None,
    "system_turn": "system",
    "without_system": None,
    "separator": None,
    "user_turn": "user",
    "assistant_header": None,
    "assistant_turn": "assistant",
}


@dataclass(frozen=True)
class Slot:
    """The place of a message's content in a field."""

    role: str


Part = str | Special | Slot


@dataclass(frozen=True)
class Template:
    """How a conversation is rendered as text.

    The seven fields from `begin` to `assistant_turn` are text. In them `{system}`, `{user}` and `{assistant}` stand for
    the content of a message, `{bos}` and `{eos}` for the tokenizer's special tokens; every text listed in
    `special_tokens` is a special token too. Everything else is plain text. A conversation is

        begin, system_turn, user_turn, assistant_header, assistant_turn,
        separator, user_turn, assistant_header, assistant_turn, separator, ...

    and a prompt ends with `assistant_header`. `assistant_turn` is trained, nothing else is.

    Two spans of text side by side (`assistant_header` and `assistant_turn`) are tokenized one by one, as they are when
    the model answers. For that to give the same ids as the whole text, `assistant_header` must not end with a space,
    and where it ends with a line break the answer is stripped (`strips`): line breaks in a row can be one token.
    """

    name: str
    user_turn: str
    assistant_header: str
    assistant_turn: str
    system_turn: str
    begin: str = "{bos}"
    without_system: str = ""  # in place of `system_turn` where the system message is empty
    separator: str = ""
    system: str = ""  # the system message of a conversation that has none
    special_tokens: tuple[str, ...] = ()
    strip: bool = False  # remove white space around the content of every message

    def __post_init__(self) -> None:
        """Raises UsageError for a definition that cannot work."""
        for field, slot in FIELDS.items():
            found = [part.role for part in self.parts(field) if isinstance(part, Slot)]
            if found != [slot] * (slot is not None):
                expected = f"{{{slot}}} once" if slot else "no message"
                raise UsageError(
                    f"the template {self.name} has {', '.join(f'{{{role}}}' for role in found) or 'no message'} in "
                    f"{field}; expected {expected}: correct {field}"
                )
        if isinstance(self.parts("assistant_turn")[-1], Slot):
            raise UsageError(
                f"the template {self.name} has nothing after {{assistant}} in assistant_turn, so that an answer never "
                "ends; expected an end mark: append {eos}"
            )
        if self.assistant_header.endswith((" ", "\t")):
            raise UsageError(
                f"the template {self.name} has an assistant_header that ends with a space, which most tokenizers join "
                "to the word that follows; expected none: move the space to the start of assistant_turn"
            )

    def parts(self, field: str) -> tuple[Part, ...]:
        """A field as text, special tokens and slots."""
        return self._parts[field]

    @functools.cached_property
    def _parts(self) -> dict[str, tuple[Part, ...]]:
        """Parsed once: a corpus renders millions of turns."""
        return {
            field: tuple(_split(getattr(self, field), self.special_tokens, f"{self.name}, {field}")) for field in FIELDS
        }

    @functools.cached_property
    def _stripped(self) -> tuple[str, ...]:
        if self.strip:
            return SLOTS
        return ("assistant",) if self.assistant_header[-1:].isspace() else ()

    def strips(self, role: str) -> bool:
        """Whether white space around the content of this role's messages is removed."""
        return role in self._stripped

    @property
    def end(self) -> Piece:
        """The end mark of an answer: a special token, or text where the template has no token for it."""
        last = self.parts("assistant_turn")[-1]
        return Special(last.name, trained=True) if isinstance(last, Special) else Span(str(last), trained=True)

    def turn(self, system: str | None, question: str, answer: str | None) -> list[Piece]:
        """One question with its answer, as pieces.

        `system`: the system message (it may be empty) at the start of a conversation, None for a later turn.
        `answer`: None for a prompt.
        """
        contents = {"system": system or "", "user": question, "assistant": answer or ""}
        for role in self._stripped:
            contents[role] = contents[role].strip()
        if system is None:
            fields = ["separator"]
        else:
            fields = ["begin", "system_turn" if contents["system"] else "without_system"]
        pieces = self._fill([*fields, "user_turn", "assistant_header"], contents, trained=False)
        if answer is not None:
            pieces += self._fill(["assistant_turn"], contents, trained=True)
        return pieces

    def _fill(self, fields: Sequence[str], contents: Mapping[str, str], trained: bool) -> list[Piece]:
        """The fields with the contents in their slots; neighbouring text is one span."""
        pieces: list[Piece] = []
        text = ""
        for field in fields:
            for part in self._parts[field]:
                if isinstance(part, Special):
                    if text:
                        pieces.append(Span(text, trained))
                        text = ""
                    pieces.append(Special(part.name, trained) if trained else part)
                else:
                    text += part if isinstance(part, str) else contents[part.role]
        return [*pieces, Span(text, trained)] if text else pieces

    def render(self, messages: Sequence[Message], open_turn: bool = False) -> list[Piece]:
        """A conversation as pieces; with `open_turn` it ends with the user, and the model is to answer."""
        system, pairs = as_pairs(messages, open_turn)
        start = self.system if system is None else system
        answers = [message for message in messages if message.role == "assistant"]
        pieces: list[Piece] = []
        for index, (question, answer) in enumerate(pairs):
            turn = self.turn(None if index else start, question, answer)
            trained = answer is None or answers[index].trained
            pieces += turn if trained else [replace(piece, trained=False) for piece in turn]
        return pieces


def as_pairs(messages: Sequence[Message], open_turn: bool = False) -> tuple[str | None, list[tuple[str, str | None]]]:
    """The system message (None: there is none) and the (question, answer) pairs; the answer of an open turn is None.

    Raises RecipeError unless the messages are an optional system message, then user and assistant in turn: a silent
    repair here would train on something that nobody wrote.
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


def _split(text: str, special_tokens: tuple[str, ...], where: str) -> Iterator[Part]:
    """A field's parts, in order. Raises UsageError for an unknown placeholder; `where` names the field."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    pattern = "|".join([r"\{\w+\}", *map(re.escape, longest_first)])
    at = 0
    for found in re.finditer(pattern, text):
        if found.start() > at:
            yield text[at : found.start()]
        at = found.end()
        name = found[0][1:-1]
        if found[0] in special_tokens:
            yield Special(found[0], trained=False)
        elif name in ("bos", "eos"):
            yield Special(name, trained=False)
        elif name in SLOTS:
            yield Slot(name)
        else:
            raise UsageError(
                f"the template {where} has the placeholder {found[0]}; expected one of {{bos}}, {{eos}}, {{system}}, "
                "{user} and {assistant}: correct it"
            )
    if at < len(text):
        yield text[at:]
