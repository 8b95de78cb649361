"""The engine behind chat, API and page: streamed answers of the base and the tuned model from one copy in memory."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from recipe.conversations.messages import Message
from recipe.conversations.templates import stop_string
from recipe.conversations.tokens import check_template, end_ids, prompt_ids
from recipe.core.errors import RecipeError
from recipe.model.likelihood import autocast, causal_lm
from recipe.serving.text import TextStream, TokenBytes

GREEDY = 1e-4  # a temperature below this is 0: logits divided by it would overflow
SCORED = 256  # positions whose logits over the whole vocabulary are in memory at once


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults always choose the most probable one."""

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # sample from the most probable tokens that together have this probability; 1: from all
    top_k: int = 0  # sample from this number of most probable tokens; 0: from all
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the answer become less probable
    seed: int | None = None  # None: another answer every time


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it."""

    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()  # the tokens that end the answer
    strip: bool = False  # remove white space around the answer
    logprobs: int | None = None  # number of alternatives reported for every token; None: no log-probabilities


@dataclass(frozen=True)
class Token:
    """A token with its log-probability (nats, before any sampling setting) and the most probable alternatives."""

    id: int
    logprob: float | None  # None: the first token of a prompt, which nothing predicts
    top: tuple[tuple[int, float], ...] = ()
    start: int = 0  # where its text starts in the decoded text


@dataclass(frozen=True)
class Piece:
    """The next part of an answer. The last one has `finish`: stop, length or cancelled."""

    text: str
    tokens: tuple[Token, ...] = ()  # where log-probabilities are asked for; the token that ends the answer included
    finish: str | None = None
    count: int = 0  # tokens generated so far, the end token included


@dataclass
class _Past:
    """Keys and values of `ids`, which are the beginning of a conversation."""

    ids: list[int]
    cache: Any


@dataclass
class Engine:
    """A model in memory under one name, or as base and tuned model; see `open.py`.

    Raises RecipeError where the template cannot be read, or needs a special token that the tokenizer lacks.
    """

    model: Any
    tokenizer: Any
    template: str
    models: tuple[str, ...] = ("tuned", "base")
    _past: dict[str, _Past] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_template(self.tokenizer, self.template)
        self.bytes = TokenBytes(self.tokenizer)
        self.context: int = causal_lm(self.model).config.max_position_embeddings
        self.vocabulary: int = causal_lm(self.model).config.vocab_size
        self.device = next(self.model.parameters()).device
        self._lora = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]

    def chat_request(self, model: str, messages: Sequence[Message], max_tokens: int, **settings: Any) -> Request:
        """The request that answers the last of `messages`. `settings`: further fields of `Request`."""
        end = stop_string(self.template)
        stop = (*settings.pop("stop", ()), *([end] if end else []))
        prompt = tuple(prompt_ids(self.tokenizer, self.template, messages))
        ends = tuple(end_ids(self.tokenizer, self.template))
        return Request(model, prompt, max_tokens, stop=stop, ends=ends, strip=True, **settings)

    def check(self, request: Request) -> None:
        """Raises RecipeError where prompt and answer do not fit into the context."""
        if not request.prompt:
            raise RecipeError("the prompt is empty; pass at least one token")
        if len(request.prompt) + request.max_tokens > self.context:
            raise RecipeError(
                f"the prompt has {len(request.prompt)} tokens and the answer may have {request.max_tokens}, but the "
                f"context of the model has {self.context}; shorten the prompt or lower the number of tokens to generate"
            )

    def answer(self, request: Request) -> str:
        """The whole answer: what `stream` yields, joined."""
        return "".join(piece.text for piece in self.stream(request))

    def stream(self, request: Request, cancelled: threading.Event | None = None) -> Iterator[Piece]:
        """The answer in pieces of whole characters, one piece per token. It ends within one token of `cancelled`.

        Keys and values are kept for the next prompt of the same model that begins with the same tokens.
        """
        self.check(request)
        choose = _Chooser(request, self.device)
        past = self._take(request) if request.max_tokens else _Past([], None)
        text, waiting, count, finish = TextStream(request.stop, request.strip), [], 0, "length"
        ids = list(request.prompt)
        try:
            while count < request.max_tokens:
                if cancelled is not None and cancelled.is_set():
                    finish = "cancelled"
                    break
                logits = self._step(request.model, past, ids)
                token = choose(logits, ids)
                count += 1
                if request.logprobs is not None:
                    waiting.append(_scored(logits, token, request.logprobs, len(text.raw)))
                if token in request.ends:
                    finish = "stop"
                    break
                ids.append(token)
                shown = text.push(self.bytes(token))
                ready = [item for item in waiting if item.start < text.sent]
                waiting = waiting[len(ready) :]
                if text.stopped:
                    yield Piece(shown, tuple(ready), "stop", count)
                    return
                yield Piece(shown, tuple(ready), None, count)
            yield Piece(text.close(), tuple(waiting), finish, count)
        except Exception:
            past.cache = None  # a forward pass that failed leaves layers of different lengths
            self.forget()  # and where memory was short, the next answer needs what the other model keeps
            raise
        finally:
            if past.cache is not None:
                self._past[request.model] = past

    def score(self, model: str, ids: Sequence[int], top: int) -> list[Token]:
        """Every token of `ids` with its log-probability after those before it, the first one without."""
        out = [Token(ids[0], None)]
        self._use(model)
        with torch.no_grad(), autocast(self.device):
            llama = causal_lm(self.model)
            hidden = llama.model(torch.tensor([list(ids)], device=self.device), use_cache=False).last_hidden_state[0]
            for start in range(0, len(ids) - 1, SCORED):
                stop = min(start + SCORED, len(ids) - 1)
                logprobs = llama.lm_head(hidden[start:stop]).float().log_softmax(-1)
                best = logprobs.topk(top) if top else None
                for row in range(stop - start):
                    token = ids[start + row + 1]
                    pairs = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True) if best else ()
                    out.append(Token(token, logprobs[row, token].item(), tuple(pairs)))
        return out

    def forget(self) -> None:
        """Free the kept keys and values."""
        self._past.clear()

    def _take(self, request: Request) -> _Past:
        """The kept keys and values as far as they belong to this prompt, without those of its last token."""
        from transformers import DynamicCache

        past = self._past.pop(request.model, None)
        pairs = zip(past.ids if past else (), request.prompt[:-1], strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if past is None or not common:
            return _Past([], DynamicCache())
        past.cache.crop(common)
        return _Past(past.ids[:common], past.cache)

    def _step(self, model: str, past: _Past, ids: list[int]) -> torch.Tensor:
        """The logits [vocabulary] in fp32 after `ids`; keys and values of what was new are kept in `past`."""
        new = torch.tensor([ids[len(past.ids) :]], device=self.device)
        self._use(model)
        # `stream` must not hold these contexts open between two tokens: another answer may run there
        with torch.no_grad(), autocast(self.device):
            out = causal_lm(self.model)(input_ids=new, past_key_values=past.cache, use_cache=True, logits_to_keep=1)
        past.ids.extend(ids[len(past.ids) :])
        return out.logits[0, -1].float()

    def _use(self, model: str) -> None:
        """Switch the adapter off for the base and on for the tuned model.

        This is peft's `disable_adapter` without its loop over every parameter's `requires_grad`, which takes longer
        than a token of a small model: two answers that take turns switch before every token.
        """
        if model not in self.models:
            raise RecipeError(f"there is no model {model!r}; expected one of {', '.join(self.models)}")
        for layer in self._lora:
            layer._disable_adapters = model == "base"


class _Chooser:
    """Chooses the next token as `Sampling` says, with transformers' own logits processors in its own order."""

    def __init__(self, request: Request, device: torch.device) -> None:
        from transformers.generation import logits_process as processors

        sampling = request.sampling
        self.device, self.greedy = device, sampling.temperature < GREEDY
        self.steps: list[Any] = []
        if sampling.repetition_penalty != 1:
            self.steps.append(processors.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self.greedy:
            self.steps.append(processors.TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self.steps.append(processors.TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.steps.append(processors.TopPLogitsWarper(sampling.top_p))
            self.random = torch.Generator()  # on the CPU, so that a seed means the same on every device
            if sampling.seed is None:
                self.random.seed()
            else:
                self.random.manual_seed(sampling.seed)

    def __call__(self, logits: torch.Tensor, ids: list[int]) -> int:
        scores = logits[None]
        if self.steps:
            so_far = torch.tensor([ids], device=self.device)
            for step in self.steps:
                scores = step(so_far, scores)
        if self.greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self.random))


def _scored(logits: torch.Tensor, token: int, top: int, start: int) -> Token:
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(top)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Token(token, logprobs[token].item(), tuple(pairs), start)
