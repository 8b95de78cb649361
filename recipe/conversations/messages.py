"""What a conversation is, and the names that public data sets give to its two sides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ASSISTANT_NAMES = ("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot", "ai", "gpt-4", "chatbot")
TEXT_PARTS = ("text", "input_text", "output_text")  # types of a part that is text
# Any other role is kept as it is; `cleaning` drops and counts it.
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(ASSISTANT_NAMES, "assistant"),
}


@dataclass(frozen=True)
class Message:
    """One turn. In a prepared conversation `role` is "system", "user" or "assistant".

    An assistant turn with `trained=False` is context: it is rendered, and has no loss.
    """

    role: str
    content: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """One conversation of a source; a record can hold several."""

    id: str
    messages: tuple[Message, ...]
    source: str  # the file's name
    passed_over: int = 0  # further turns of the record that were not taken: other answers and branches
    unranked: int = 0  # of these, the answers that nothing ranks behind the one that was taken


@dataclass(frozen=True)
class Dialogue:
    """A conversation as a format reads it from a record, before it has an id.

    `alternatives` are further answers to the last question, none marked as better than another. `passed_over` counts
    the turns that a ranking or a tree puts behind the chosen ones, and `unranked` alternatives that were not taken.
    """

    messages: list[Message]
    passed_over: int = 0
    alternatives: tuple[str, ...] = ()
    unranked: int = 0


def read_text(content: Any) -> str:
    """A string as it is, a number as text, of a list of parts (OpenAI, Anthropic, Gemini) the text parts; else ""."""
    if isinstance(content, str):
        return content
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return str(content) if content == content else ""  # NaN is how tables write an empty cell
    if isinstance(content, dict):
        content = content["parts"] if isinstance(content.get("parts"), list) else [content]
    if isinstance(content, list):
        return "\n".join(text for part in content if (text := _read_part(part)) is not None)
    return ""


def _read_part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") not in TEXT_PARTS:
        return None
    return next((part[key] for key in ("text", "value", "content") if isinstance(part.get(key), str)), None)


def read_role(name: Any, roles: Mapping[str, str] = ROLES) -> str:
    """ "system", "user" or "assistant" for a known name; any other name in lower case."""
    name = name.strip().lower() if isinstance(name, str) else ""
    return roles.get(name, name)


def alternate(*turns: Any, system: Any = "") -> list[Message]:
    """The turns as user and assistant messages in alternation, after a system message if there is text for one."""
    head = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    return head + [Message(("user", "assistant")[index % 2], read_text(turn)) for index, turn in enumerate(turns)]


def join_texts(*texts: Any) -> str:
    """The texts (see `read_text`) with a blank line between them; blank ones are left out."""
    return "\n\n".join(text for text in map(read_text, texts) if text.strip())
