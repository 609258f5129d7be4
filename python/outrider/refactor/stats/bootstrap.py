"""Seeded bootstrap over paired items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_CHUNK_NUMBERS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """The figure itself and the percentile interval of its resamples."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: np.ndarray, confidence: float) -> "Interval":
        low, high = np.quantile(resampled, ((1 - confidence) / 2, (1 + confidence) / 2))
        return cls(float(value), float(low), float(high))

    def row(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def resample_sums(rows: np.ndarray, resamples: int, seed: Sequence[int]) -> np.ndarray:
    """rows [K, n] -> [K, resamples]: sums over n items drawn with replacement, the same draw for all K rows."""
    count = rows.shape[1]
    generator = np.random.default_rng(list(seed))
    out = np.empty((rows.shape[0], resamples))
    step = max(1, _CHUNK_NUMBERS // count)
    for begin in range(0, resamples, step):
        end = min(begin + step, resamples)
        counts = generator.multinomial(count, np.full(count, 1 / count), size=end - begin)
        out[:, begin:end] = rows @ counts.T
    return out
