"""A conversation with one model: its turns, its system message, and the part that fits into the context."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.conversations.messages import Message
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file

Show = Callable[[str], Any]


class Session:
    """The conversation with `model` of `engine`. Messages that no longer fit only leave the prompt."""

    def __init__(self, engine: Any, model: str, max_tokens: int, sampling: Any) -> None:
        self.engine, self.model, self.max_tokens, self.sampling = engine, model, max_tokens, sampling
        self.system = ""
        self.messages: list[Message] = []
        self.left_out = 0  # how many of the oldest messages the last prompt did not contain
        self.asked = 0

    def ask(self, text: str, show: Show | None = None) -> str:
        """The answer to `text`; `show` receives it in pieces. Both join the conversation once it is complete.

        With a seed, the n-th answer of a session uses seed + n: the session repeats, and a second try differs.
        """
        turns = [*self.messages, Message("user", text)]
        request = self.fit(turns)
        out = []
        for piece in self.engine.stream(request):
            out.append(piece.text)
            if show and piece.text:
                show(piece.text)
        answer = "".join(out)
        self.asked += 1
        self.messages = [*turns, Message("assistant", answer)]
        return answer

    def fit(self, turns: list[Message]) -> Any:
        """The request for the last of `turns`, without the oldest questions and answers where the context ends.

        Raises RecipeError where the last question alone is too long.
        """
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=sampling.seed + self.asked)
        head = [Message("system", self.system)] if self.system else []
        for start in range(0, len(turns), 2):
            request = self.engine.chat_request(self.model, [*head, *turns[start:]], self.max_tokens, sampling=sampling)
            if len(request.prompt) + self.max_tokens <= self.engine.context:
                self.left_out = start
                return request
        raise RecipeError(
            f"the question has {len(request.prompt)} tokens with its template, but the context of the model leaves "
            f"{self.engine.context - self.max_tokens}; ask a shorter one or lower --max-new-tokens"
        )

    def take_back(self) -> str | None:
        """Remove the last question with its answer and return it; None where nothing was asked."""
        if not self.messages:
            return None
        question = self.messages[-2].content
        self.messages = self.messages[:-2]
        return question

    def forget(self) -> None:
        """Begin a new conversation with the same system message."""
        self.messages, self.left_out = [], 0


def save(sessions: list[Session], path: Path) -> None:
    """Write the conversations as JSON Lines of OpenAI messages, which `recipe.corpus` reads: all of them or no file.

    Raises FileExistsError: no file is replaced.
    """
    if os.path.lexists(path):
        raise FileExistsError(path)
    with atomic_file(path) as file:
        for session in sessions:
            head = [Message("system", session.system)] if session.system else []
            turns = [dataclasses.asdict(message) for message in [*head, *session.messages]]
            file.write(json.dumps({"id": session.model, "messages": turns}, ensure_ascii=False) + "\n")
