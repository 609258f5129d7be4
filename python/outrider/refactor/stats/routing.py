"""How a router uses its experts: load, balance, staying, run lengths."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ExpertUse:
    """`load` [N] tokens per expert; `runs` lengths of unbroken runs of one expert inside a text; `pairs` neighbours."""

    load: np.ndarray
    runs: np.ndarray
    pairs: int
    stays: int

    @property
    def entropy(self) -> float:
        """H(f) / log N: 1 is perfect balance; 1 when there is one expert."""
        if self.load.size == 1:
            return 1.0
        share = self.load[self.load > 0] / self.load.sum()
        return float(-(share * np.log(share)).sum() / np.log(self.load.size))

    @property
    def imbalance(self) -> float:
        """Largest load over smallest; infinite when an expert is never used."""
        return float(self.load.max() / self.load.min()) if self.load.min() else float("inf")

    @property
    def stay_rate(self) -> float:
        """Share of tokens that keep the expert of the token before them in the same text."""
        return self.stays / self.pairs if self.pairs else 0.0

    def histogram(self) -> list[int]:
        """Entry k: runs of 2^k to 2^(k+1) - 1 tokens."""
        return np.bincount(np.floor(np.log2(self.runs)).astype(int)).tolist() if self.runs.size else []

    def row(self) -> dict[str, Any]:
        """Plain numbers for the card; `imbalance` is null when an expert is never used."""
        run_p50, run_p90 = np.quantile(self.runs, (0.5, 0.9), method="inverted_cdf").tolist()
        return {
            "load": self.load.tolist(),
            "entropy": self.entropy,
            "imbalance": self.imbalance if self.load.min() else None,
            "stay_rate": self.stay_rate,
            "run_mean": float(self.runs.mean()),
            "run_p50": int(run_p50),
            "run_p90": int(run_p90),
            "run_histogram": self.histogram(),
        }


def expert_use(texts: Iterable[np.ndarray], experts: int) -> ExpertUse:
    """From the expert ids of each text.

    Raises:
        ValueError: an id lies outside 0 to `experts` - 1, or there is no token at all.
    """
    load = np.zeros(experts, np.int64)
    runs: list[np.ndarray] = []
    pairs = stays = 0
    for ids in texts:
        ids = np.asarray(ids)
        if ids.size == 0:
            continue
        if ids.min() < 0 or ids.max() >= experts:
            raise ValueError(f"ids from {ids.min()} to {ids.max()} for {experts} experts")
        load += np.bincount(ids, minlength=experts)
        changes = np.flatnonzero(np.diff(ids)) + 1
        runs.append(np.diff(np.concatenate(([0], changes, [ids.size]))))
        pairs += ids.size - 1
        stays += ids.size - 1 - changes.size
    if not runs:
        raise ValueError("no token")
    return ExpertUse(load, np.concatenate(runs), pairs, stays)
