"""Confidence intervals by the paired bootstrap over conversations (Efron 1979; Koehn 2004, for paired systems).

Conversations are drawn with replacement, the same ones for base and tuned, so that what is hard for both cancels out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its interval at `LEVEL`."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference of this size is larger than its interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Paired:
    """The same statistic of base and tuned, and of the difference tuned - base."""

    base: Interval
    tuned: Interval
    difference: Interval


def ratio(base: Values, tuned: Values, weights: Values, seed: int = 0) -> Paired:
    """sum(values) / sum(weights) of base and tuned, with paired intervals.

    base, tuned, weights: float64 [conversations], as summed nats and trained tokens (a loss), nats / ln 2 and bytes
    (bits per byte), or hits and ones (an accuracy). A single conversation has no interval: its bounds are its value.
    Raises ValueError where the lengths differ, where there is no conversation, or where all weights are zero.
    """
    if not len(base) == len(tuned) == len(weights) or not len(base) or weights.sum() <= 0:
        raise ValueError(
            f"found {len(base)}, {len(tuned)} and {len(weights)} values, expected as many of each and some weight"
        )
    drawn = np.concatenate([part @ np.stack([base, tuned, weights], axis=1) for part in _drawn(len(base), seed)])
    drawn = drawn[drawn[:, 2] > 0]
    samples = [drawn[:, column] / drawn[:, 2] for column in (0, 1)]
    point = [float(values.sum() / weights.sum()) for values in (base, tuned)]
    return Paired(
        _interval(point[0], samples[0]),
        _interval(point[1], samples[1]),
        _interval(point[1] - point[0], samples[1] - samples[0]),
    )


def _drawn(count: int, seed: int) -> Iterator[Values]:
    """How often each of `count` conversations is in each resample, [RESAMPLES, count] in parts of some 16 MB."""
    generator = np.random.default_rng(seed)
    odds = np.full(count, 1 / count)
    rows = max(1, 2_000_000 // count)
    for start in range(0, RESAMPLES, rows):
        yield generator.multinomial(count, odds, size=min(rows, RESAMPLES - start)).astype(np.float64)


def _interval(value: float, samples: Values) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(value, float(min(low, value)), float(max(high, value)))
