"""OpenAI's chat completions and completions: what a request means, and how its answer looks as JSON."""

import dataclasses
import functools
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from recipe.conversations.templates import Span, Special
from recipe.conversations.tokens import encode
from recipe.core.errors import RecipeError
from recipe.serving.engine import Engine, Piece, Request, Sampling, Token
from recipe.serving.fields import CHAT, COMPLETION, DEFAULT_TOKENS, MAX_TOP, BadRequest, Fields


@dataclass
class Prompt:
    """One prompt of a call; every prompt gives one choice."""

    request: Request
    text: str | None = None  # None: it was given as tokens
    echo: bool = False


@dataclass
class Call:
    """A checked request: prompts in the order of their choices, and the form of the answer."""

    model: str
    prompts: list[Prompt]
    chat: bool
    stream: bool
    include_usage: bool
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    def base(self, chunk: bool) -> dict[str, Any]:
        """The fields that every object of the answer has."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def parse_chat(engine: Engine, body: Any) -> Call:
    """A call of /v1/chat/completions. Raises BadRequest."""
    fields = Fields(body, CHAT)
    model = known_model(engine, fields)
    top = fields.integer("top_logprobs", None, 0, MAX_TOP)
    if top is not None and not fields.flag("logprobs"):
        raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    settings = {
        "sampling": Sampling(**fields.sampling()),
        "stop": fields.stops(),
        "logprobs": (top or 0) if fields.flag("logprobs") else None,
    }
    wanted = fields.max_tokens(1)
    try:
        request = engine.chat_request(model, fields.messages(), wanted or 1, **settings)
    except RecipeError as error:
        raise BadRequest(str(error), "messages") from None
    prompt = Prompt(fitted(engine, request, wanted))
    return Call(model, [prompt], True, fields.flag("stream"), fields.include_usage())


def parse_completion(engine: Engine, body: Any) -> Call:
    """A call of /v1/completions. Raises BadRequest."""
    fields = Fields(body, COMPLETION)
    model = known_model(engine, fields)
    echo, wanted = fields.flag("echo"), fields.max_tokens(0)
    sampling, stop = Sampling(**fields.sampling()), fields.stops()
    logprobs = fields.integer("logprobs", None, 0, MAX_TOP)
    ends = (engine.tokenizer.eos_token_id,)
    prompts = []
    for text, ids in fields.prompts(engine.vocabulary, lambda text: encode_text(engine, text)):
        request = Request(model, tuple(ids), 1, sampling, stop, ends, logprobs=logprobs)
        prompts.append(Prompt(fitted(engine, request, wanted), text, echo))
    return Call(model, prompts, False, fields.flag("stream"), fields.include_usage())


def known_model(engine: Engine, fields: Fields) -> str:
    """The field `model`. Raises BadRequest with status 404 for a model that is not served."""
    name = fields.text("model", fields.body.get("model"))
    if name not in engine.models:
        raise BadRequest(
            f"this server has no such model; it has {', '.join(engine.models)}", "model", 404, "model_not_found"
        )
    return name


def fitted(engine: Engine, request: Request, wanted: int | None) -> Request:
    """The request with its number of tokens: `wanted`, or by default as many as fit, at most 256."""
    if not request.prompt:
        raise BadRequest("the prompt is empty; send at least one token", "prompt")
    room = engine.context - len(request.prompt)
    tokens = max(1, min(DEFAULT_TOKENS, room)) if wanted is None else wanted
    request = dataclasses.replace(request, max_tokens=tokens)
    try:
        engine.check(request)
    except RecipeError as error:
        raise BadRequest(str(error), code="context_length_exceeded") from None
    return request


def encode_text(engine: Engine, text: str) -> list[int]:
    """Plain text as tokens, after BOS where the tokenizer uses one. Names of special tokens in it are plain text."""
    return encode(engine.tokenizer, [Special("bos", False), Span(text, False)])[0]


def generate(engine: Engine, call: Call, cancelled: Any) -> Iterator[tuple[int, Piece]]:
    """(number of the choice, piece) of every prompt in order; the prompt itself comes first where it is echoed."""
    for index, prompt in enumerate(call.prompts):
        if cancelled.is_set():
            return
        if prompt.echo:
            yield index, echo(engine, prompt)
        for piece in engine.stream(prompt.request, cancelled):
            yield index, piece


def echo(engine: Engine, prompt: Prompt) -> Piece:
    """The prompt as the first piece of its own completion."""
    request = prompt.request
    decoded = b"".join(engine.bytes(token) for token in request.prompt).decode("utf-8", "replace")
    text = decoded if prompt.text is None else prompt.text
    if request.logprobs is None:
        return Piece(text)
    tokens, data = [], b""
    for token in engine.score(request.model, request.prompt, request.logprobs):
        start = len(data.decode("utf-8", "ignore")) - (len(decoded) - len(text))
        tokens.append(Token(token.id, token.logprob, token.top, max(0, start)))
        data += engine.bytes(token.id)
    return Piece(text, tuple(tokens))


class Answer:
    """Collects the pieces of one choice."""

    def __init__(self, engine: Engine, call: Call, index: int) -> None:
        self.engine, self.call, self.index = engine, call, index
        self.prompt = call.prompts[index]
        self.parts: list[str] = []
        self.tokens: list[Token] = []
        self.finish: str | None = None
        self.count = 0
        self.shift = 0  # characters of the echoed prompt before the generated text
        self.first = True

    def add(self, piece: Piece) -> dict[str, Any]:
        """The choice of the streamed object for this piece."""
        echoed = self.prompt.echo and self.first
        tokens = list(piece.tokens) if echoed else [shifted(token, self.shift) for token in piece.tokens]
        self.shift = len(piece.text) if echoed else self.shift
        self.first = False
        self.parts.append(piece.text)
        self.tokens += tokens
        self.finish, self.count = piece.finish, max(self.count, piece.count)
        return self._choice(piece.text, tokens, piece.finish, streamed=True)

    def choice(self) -> dict[str, Any]:
        """The whole choice."""
        return self._choice("".join(self.parts), self.tokens, self.finish, streamed=False)

    def _choice(self, text: str, tokens: list[Token], finish: str | None, streamed: bool) -> dict[str, Any]:
        wanted = self.prompt.request.logprobs is not None
        if not self.call.chat:
            logprobs = completion_logprobs(self.engine, tokens) if wanted else None
            return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        logprobs = {"content": [chat_logprobs(self.engine, token) for token in tokens]} if wanted else None
        delta = {"content": text} if text or finish is None else {}
        content = {"delta": delta} if streamed else {"message": {"role": "assistant", "content": text}}
        return {"index": self.index, **content, "logprobs": logprobs, "finish_reason": finish}


def shifted(token: Token, by: int) -> Token:
    return Token(token.id, token.logprob, token.top, token.start + by) if by else token


def usage(answers: list[Answer]) -> dict[str, int]:
    """Tokens of all prompts and all answers."""
    prompt = sum(len(answer.prompt.request.prompt) for answer in answers)
    completion = sum(answer.count for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def token_text(engine: Engine, token: int) -> str:
    """A token for a reader; one that is not a whole character as bytes:\\xe4, as OpenAI writes it."""
    data = engine.bytes.literal(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion_logprobs(engine: Engine, tokens: list[Token]) -> dict[str, Any]:
    """The form that completions use: a list per property. Where two alternatives look alike, the better one counts."""
    name = functools.partial(token_text, engine)
    return {
        "tokens": [name(token.id) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else {name(id): value for id, value in reversed(token.top)}
            for token in tokens
        ],
        "text_offset": [token.start for token in tokens],
    }


def chat_logprobs(engine: Engine, token: Token) -> dict[str, Any]:
    """The form that chat completions use: one object per token."""

    def entry(number: int, logprob: float | None) -> dict[str, Any]:
        data = engine.bytes.literal(number)
        return {"token": token_text(engine, number), "logprob": logprob, "bytes": list(data)}

    return {**entry(token.id, token.logprob), "top_logprobs": [entry(*pair) for pair in token.top]}
