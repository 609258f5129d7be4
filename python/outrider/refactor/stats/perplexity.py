"""Perplexity per domain, and whether one model's is lower than another's on the same documents."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from outrider.refactor.stats.bootstrap import CONFIDENCE, Interval, resample_sums


@dataclass(frozen=True)
class DomainLoss:
    """One entry per document: summed nats, scored tokens, and bytes of the scored text (0 where unknown)."""

    nats: np.ndarray
    tokens: np.ndarray
    text_bytes: np.ndarray

    def __post_init__(self) -> None:
        if not self.nats.shape == self.tokens.shape == self.text_bytes.shape or self.nats.ndim != 1:
            raise ValueError("nats, tokens and bytes must be vectors of one length, an entry per document")
        if self.nats.size == 0 or int(self.tokens.sum()) <= 0 or not np.isfinite(self.nats).all():
            raise ValueError("a domain needs finite nats of at least one token")

    @property
    def nats_per_token(self) -> float:
        return math.fsum(self.nats) / float(self.tokens.sum())

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float | None:
        total = float(self.text_bytes.sum())
        return math.fsum(self.nats) / math.log(2) / total if total else None


Losses = Mapping[str, DomainLoss]


def domain_loss(nats, tokens, text_bytes=None) -> DomainLoss:
    """From any sequences; bytes default to unknown."""
    counts = np.asarray(tokens, np.int64)
    sizes = np.zeros_like(counts) if text_bytes is None else np.asarray(text_bytes, np.int64)
    return DomainLoss(np.asarray(nats, np.float64), counts, sizes)


def geometric_mean(losses: Losses) -> float:
    """Of the domains' perplexities, each domain counting the same."""
    return math.exp(math.fsum(loss.nats_per_token for loss in losses.values()) / len(losses))


def compare(ours: Losses, base: Losses, *, resamples: int = 2_000, seed: int = 0) -> dict[str, Interval]:
    """Ratio ours / base of perplexities per domain, and of their geometric means under the name `geometric mean`.

    Paired bootstrap: documents are drawn with replacement inside each domain, the same ones for both sides. Below 1
    ours is better.

    Raises:
        ValueError: the two sides have other domains, or other documents or tokens in one.
    """
    if ours.keys() != base.keys():
        raise ValueError(f"domains differ: {sorted(ours)} and {sorted(base)}")
    result: dict[str, Interval] = {}
    logs = np.zeros(resamples)
    value = 0.0
    for number, name in enumerate(ours):
        a, b = ours[name], base[name]
        if not np.array_equal(a.tokens, b.tokens):
            raise ValueError(f"{name}: the two sides scored other documents")
        sums = resample_sums(np.stack((a.nats, b.nats, a.tokens.astype(np.float64))), resamples, (seed, number))
        ratio = (sums[0] - sums[1]) / sums[2]
        plain = a.nats_per_token - b.nats_per_token
        result[name] = Interval.of(math.exp(plain), np.exp(ratio), CONFIDENCE)
        logs += ratio / len(ours)
        value += plain / len(ours)
    result["geometric mean"] = Interval.of(math.exp(value), np.exp(logs), CONFIDENCE)
    return result
