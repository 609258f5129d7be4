"""How much two choices tell of each other, from how often they were made together."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shared:
    """Of two choices X and Y, in nats. `plug_in` takes frequencies for probabilities, which is too high by about
    (cells - rows - columns + 1) / 2n for n independent pairs; `nats` has that taken off (Miller and Madow, 1955; rows,
    columns and cells that occurred), so independent choices come out near 0, a little below it as often as above.
    `entropy` is that of Y, corrected alike; `share` is nats / entropy, null when Y never varies."""

    plug_in: float
    nats: float
    entropy: float
    share: float | None


def joint_counts(first: np.ndarray, second: np.ndarray, experts: int) -> np.ndarray:
    """[N, N]: how often `first` was i while `second` was j."""
    pairs = first.astype(np.int64).ravel() * experts + second.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=experts * experts).reshape(experts, experts)


def transitions(joint: np.ndarray) -> np.ndarray:
    """P(Y = j | X = i), rows sum to 1; a row that never occurred is 0."""
    totals = joint.sum(axis=1, keepdims=True)
    return np.divide(joint, totals, out=np.zeros(joint.shape), where=totals > 0)


def shared_information(joint: np.ndarray) -> Shared:
    """From counts [rows of X, columns of Y].

    Raises:
        ValueError: no pair at all.
    """
    pairs = int(joint.sum())
    if pairs == 0:
        raise ValueError("no pair")
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    plug_in = _entropy(rows) + _entropy(columns) - _entropy(joint)
    seen_rows, seen_columns, seen_cells = (int(np.count_nonzero(counts)) for counts in (rows, columns, joint))
    nats = plug_in - (seen_cells - seen_rows - seen_columns + 1) / (2 * pairs)
    entropy = _entropy(columns) + (seen_columns - 1) / (2 * pairs)
    return Shared(plug_in, nats, entropy, nats / entropy if seen_columns > 1 else None)


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
