"""What a conversation is, and what public sets call its two sides."""

from dataclasses import dataclass
from typing import Any

# Any other role is passed on as it is, for `cleaning` to drop and count.
ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}


@dataclass(frozen=True)
class Message:
    """One turn. In a prepared conversation `role` is "system", "user" or "assistant"."""

    role: str
    content: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """What one record of a source holds, or one of several."""

    id: str
    messages: tuple[Message, ...]
    source: str  # the file's name
    passed_over: int = 0  # further turns of the record: answers and branches that others were preferred to


@dataclass(frozen=True)
class Dialogue:
    """A conversation as a layout's reader finds it, before it has a name."""

    messages: list[Message]
    passed_over: int = 0


def text(content: Any) -> str:
    """A string as it is; of OpenAI's typed parts the text ones. Anything else is no text."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def role(name: Any) -> str:
    """Our name of a role; one that is not known is passed on in lower case."""
    name = name.strip().lower() if isinstance(name, str) else ""
    return ROLES.get(name, name)


def exchange(*turns: Any, system: Any = "") -> list[Message]:
    """A question, its answer, the next question, ... as messages, after a system message if there is text for one."""
    head = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    return head + [Message(("user", "assistant")[index % 2], text(turn)) for index, turn in enumerate(turns)]


def joined(*texts: Any) -> str:
    """An instruction and what it is about, a blank line between; what is empty or no text is left out."""
    return "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())
