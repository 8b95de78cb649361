"""The fields of a request: known ones checked and typed, unknown ones refused by name."""

import math
from collections.abc import Callable
from typing import Any

from recipe.conversations.messages import Message
from recipe.core.text import snippet

MAX_MESSAGES = 200
MAX_STOPS = 4
MAX_STOP_LENGTH = 200
MAX_PROMPTS = 64
MAX_TOP = 20
DEFAULT_TOKENS = 256

COMMON = {"model", "stream", "stream_options", "stop", "max_tokens", "temperature", "top_p", "top_k"}
COMMON |= {"repetition_penalty", "seed", "n", "logprobs", "presence_penalty", "frequency_penalty"}
CHAT = COMMON | {"messages", "max_completion_tokens", "top_logprobs"}
COMPLETION = COMMON | {"prompt", "echo", "best_of"}
# Fields that others send with the value at which they do nothing. Another value is refused, not ignored.
NEUTRAL = {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0}


class BadRequest(Exception):
    """What is wrong with a request, with the HTTP status and the name of the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


class Fields:
    """A request's JSON object. A field that is null counts as absent, as it does for OpenAI."""

    def __init__(self, body: Any, known: set[str]) -> None:
        if not isinstance(body, dict):
            raise BadRequest("the body is not a JSON object; send one with the fields of the request")
        unknown = sorted(body.keys() - known)
        if unknown:
            names = ", ".join(snippet(name, 40) for name in unknown[:10])
            raise BadRequest(f"unknown fields: {names}; known are {', '.join(sorted(known))}", unknown[0][:40])
        self.body = {key: value for key, value in body.items() if value is not None}
        for name, neutral in NEUTRAL.items():
            if name in known and self.number(name, neutral, -math.inf, math.inf) != neutral:
                raise BadRequest(f"{name} must be {neutral}; other values are not supported", name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        value = self.body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadRequest(f"{name} must be a number from {low:g} to {high:g}", name)
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """An integer from `low` to `high`."""
        value = self.body.get(name, default)
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        if value is not None and not fits:
            raise BadRequest(f"{name} must be an integer from {low} to {high}", name)
        return value

    def flag(self, name: str) -> bool:
        """true or false; absent is false."""
        value = self.body.get(name, False)
        if not isinstance(value, bool):
            raise BadRequest(f"{name} must be true or false", name)
        return value

    def text(self, name: str, value: Any) -> str:
        """`value` as text that can be encoded as UTF-8."""
        if not isinstance(value, str):
            raise BadRequest(f"{name} must be a string", name)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"{name} contains half of a surrogate pair, which is not a character", name) from None
        return value

    def stops(self) -> tuple[str, ...]:
        """The stop strings: one, or a list."""
        value = self.body.get("stop", [])
        listed = value if isinstance(value, list) else [value]
        stops = tuple(self.text("stop", stop) for stop in listed)
        if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
            raise BadRequest(f"stop must be at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters", "stop")
        return stops

    def include_usage(self) -> bool:
        """stream_options.include_usage."""
        options = self.body.get("stream_options", {})
        if not isinstance(options, dict) or options.keys() - {"include_usage"}:
            raise BadRequest("stream_options must be an object whose only field is include_usage", "stream_options")
        return Fields(options, {"include_usage"}).flag("include_usage")

    def sampling(self) -> dict[str, Any]:
        """The fields of `recipe.serving.engine.Sampling`. Without a temperature the answer is greedy."""
        return {
            "temperature": self.number("temperature", 0.0, 0, 10),
            "top_p": self.number("top_p", 1.0, 1e-6, 1),
            "top_k": self.integer("top_k", 0, 0, 1_000_000),
            "repetition_penalty": self.number("repetition_penalty", 1.0, 0.01, 10),
            "seed": self.integer("seed", None, 0, 2**63 - 1),
        }

    def max_tokens(self, lowest: int) -> int | None:
        """max_completion_tokens or its older name max_tokens; None where neither is given."""
        newer = self.integer("max_completion_tokens", None, lowest, 1_000_000)
        older = self.integer("max_tokens", None, lowest, 1_000_000)
        return older if newer is None else newer

    def messages(self) -> list[Message]:
        """The turns of a chat: perhaps a system message, then user and assistant in turn, the last one of the user."""
        value = self.body.get("messages")
        if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
            raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages", "messages")
        messages = [self._message(message) for message in value]
        roles = [message.role for message in messages]
        turns = roles[1:] if roles[0] == "system" else roles
        if len(turns) % 2 == 0 or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise BadRequest(
                "messages must be of user and assistant in turn, with user first and last; only the first message of "
                "all may be of system",
                "messages",
            )
        return messages

    def _message(self, message: Any) -> Message:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise BadRequest("every message must have the fields role and content and no other", "messages")
        if message["role"] not in ("system", "user", "assistant"):
            raise BadRequest("the role of a message must be system, user or assistant", "messages")
        content = message["content"]
        if isinstance(content, list):
            content = "".join(self._part(part) for part in content)
        return Message(message["role"], self.text("messages", content))

    def _part(self, part: Any) -> str:
        if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
            raise BadRequest("the parts of a message must be of the type text", "messages")
        return self.text("messages", part["text"])

    def prompts(self, vocabulary: int, encode: Callable[[str], list[int]]) -> list[tuple[str | None, list[int]]]:
        """The prompts of a completion with their tokens: a string, a list of tokens, or a list of either."""
        value = self.body.get("prompt")
        one = isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, int) for item in value))
        listed = [value] if one else value
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_PROMPTS:
            raise BadRequest(
                f"prompt must be a string, a list of tokens, or a list of up to {MAX_PROMPTS} of these", "prompt"
            )
        return [self._prompt(item, vocabulary, encode) for item in listed]

    def _prompt(self, item: Any, vocabulary: int, encode: Callable[[str], list[int]]) -> tuple[str | None, list[int]]:
        if isinstance(item, str):
            text = self.text("prompt", item)
            return text, encode(text)
        tokens = item if isinstance(item, list) else []
        if not tokens or not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
            raise BadRequest(f"a prompt of tokens must be integers from 0 to {vocabulary - 1}", "prompt")
        return None, tokens
