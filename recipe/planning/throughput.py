"""Time of a run by arithmetic: FLOP per token over the matmul rate of a GPU."""

import math
from dataclasses import dataclass
from pathlib import Path

from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST
from recipe.core.manifest import read_manifest
from recipe.planning.cards import P100, Card
from recipe.planning.sizing import MemoryPlan


@dataclass(frozen=True)
class CorpusSize:
    """Tokens and samples of one epoch (None: unknown), and the share of tokens with a loss."""

    tokens: int | None
    samples: int | None
    trained_share: float = 1.0
    source: str = ""


@dataclass(frozen=True)
class TimePlan:
    """FLOP per token by term, and what follows: pairs are (at the lower, at the higher) of the two matmul rates."""

    flop_per_token: dict[str, int]
    tokens_per_second: tuple[float, float]
    fp16_tokens_per_second: float | None  # upper bound with fp16 accumulation; None: not configured
    corpus: CorpusSize
    epochs: float
    max_length: int
    tokens_per_step: int

    @property
    def steps(self) -> int | None:
        """Optimizer steps if every pack were full."""
        if self.corpus.tokens is None:
            return None
        return max(1, math.ceil(round(self.corpus.tokens * self.epochs / self.tokens_per_step, 6)))

    def hours(self, tokens: float) -> list[float]:
        """Hours for `tokens` tokens at each rate."""
        return [tokens / speed / 3600 for speed in self.tokens_per_second]


def estimate_time(config: Config, memory: MemoryPlan, corpus: CorpusSize, card: Card = P100) -> TimePlan:
    """FLOP per token from the shape and the number of recomputed layers, and speed at the rates of the GPU."""
    flop = count_flop(memory, config.corpus.max_length, corpus.trained_share)
    slow, fast = (rate * 1e12 / sum(flop.values()) for rate in card.tflops)
    return TimePlan(
        flop_per_token=flop,
        tokens_per_second=(slow, fast),
        fp16_tokens_per_second=_fp16_speed(flop, card) if config.train.matmul_accumulation == "fp16" else None,
        corpus=corpus,
        epochs=config.train.epochs,
        max_length=config.corpus.max_length,
        tokens_per_step=config.train.micro_batch_tokens * config.train.gradient_accumulation_steps,
    )


def count_flop(memory: MemoryPlan, max_length: int, trained_share: float) -> dict[str, int]:
    """FLOP per token by term, with attention at `max_length` tokens and a loss at `trained_share` of the tokens."""
    shape, recomputed = memory.shape, memory.recomputed
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    weights = 2 * shape.linear_parameters()
    # Q K^T and the product with V; the causal kernel skips the future, half of each
    scores = 2 * layers * max_length * hidden
    return {
        "forward": weights,
        "recompute": weights * recomputed // layers,
        "backward": weights,  # with respect to the input only: frozen weights get no gradient
        "attention": scores * (3 * layers + recomputed) // layers,  # the backward pass has four products, not two
        "lm_head": int(2 * (2 * shape.vocab_size * hidden * trained_share)),
    }


def _fp16_speed(flop: dict[str, int], card: Card) -> float | None:
    """Upper bound in tokens per second if all frozen layers reach the data sheet's rate; None if there is no gain."""
    if card.fp16_tflops is None:
        return None
    frozen = flop["forward"] + flop["recompute"] + flop["backward"]
    rest = sum(flop.values()) - frozen
    return 1e12 / (frozen / card.fp16_tflops + rest / max(card.tflops))


def read_corpus_size(config: Config, tokens: int | None = None) -> CorpusSize:
    """The size from the prepared corpus' manifest, or `tokens` if given. Raises RecipeError if it has no counts."""
    path = Path(config.corpus.path)
    if tokens is not None:
        return CorpusSize(tokens, None, source="--tokens")
    if not config.corpus.path or not (path / MANIFEST).is_file():
        return CorpusSize(None, None, source=f"{path} is not prepared yet" if config.corpus.path else "no corpus.path")
    results = read_manifest(path).get("results", {})
    try:
        train, trained = results["tokens"]["train"], results["trained_tokens"]["train"]
        return CorpusSize(train, results["samples"]["train"], trained / train, str(path))
    except (KeyError, TypeError, ZeroDivisionError):
        raise RecipeError(f"{path}/{MANIFEST} has no token counts; run recipe.corpus again") from None
