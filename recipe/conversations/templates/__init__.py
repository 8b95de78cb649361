"""Chat templates: how a conversation is rendered as text, and what of it is trained.

Each is one definition (`Template`), from which both its training mask and its Jinja text come. Corpus, training,
evaluation and chat all use `render`, so that a question is asked exactly as it was trained.
"""

from collections.abc import Sequence
from pathlib import Path

from recipe.conversations.messages import Message
from recipe.conversations.templates import custom, jinja
from recipe.conversations.templates.definition import Template, as_pairs
from recipe.conversations.templates.pieces import Piece, Span, Special
from recipe.conversations.templates.published import PUBLISHED
from recipe.core.errors import UsageError

__all__ = [
    "Piece",
    "Span",
    "Special",
    "Template",
    "as_pairs",
    "chat_template",
    "file",
    "get",
    "names",
    "render",
    "stop_string",
    "stop_token",
]

_BY_NAME = {template.name: template for template in PUBLISHED}


def names() -> list[str]:
    """The names of the published templates."""
    return list(_BY_NAME)


def get(name: str) -> Template:
    """The template of that name, or of that TOML file. Raises UsageError for an unknown name or a wrong file."""
    if custom.is_custom(name):
        return custom.load(Path(name))
    if name not in _BY_NAME:
        raise UsageError(
            f"there is no template {name!r}; expected one of {', '.join(_BY_NAME)}, or the path of a .toml file"
        )
    return _BY_NAME[name]


def file(name: str) -> Path | None:
    """The TOML file of a user's own template; None for a published one."""
    return Path(name) if custom.is_custom(name) else None


def render(name: str, messages: Sequence[Message], open_turn: bool = False) -> list[Piece]:
    """The conversation as spans and special tokens, in order. Trained: every answer and the end mark after it.

    `messages`: an optional system message (else the template's own), then user and assistant in turn; with `open_turn`
    they end with the user, and the model answers after the last piece. Raises RecipeError otherwise.
    """
    return get(name).render(messages, open_turn)


def chat_template(name: str, generation: bool = False, bos: bool = True) -> str:
    """The template as Jinja text, for a tokenizer's `chat_template`; see `jinja.chat_template`."""
    return jinja.chat_template(get(name), generation, bos)


def stop_token(name: str) -> str | None:
    """The special token that ends an answer ("eos", or its text); None where text ends it (`stop_string`)."""
    end = get(name).end
    return end.name if isinstance(end, Special) else None


def stop_string(name: str) -> str | None:
    """The text that ends an answer; None where a special token ends it (`stop_token`)."""
    end = get(name).end
    return end.text if isinstance(end, Span) else None
