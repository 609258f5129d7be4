"""How the experts' masks overlap."""

from typing import Any

import numpy as np


def mask_overlaps(signatures: np.ndarray, experts: int) -> dict[str, Any]:
    """signatures [L, D], bit i set when the channel is in expert i -> shares of the channels, means over layers.

    `size` [N]; `permanent` in all, `union` in any, `dead` in none; `live_signatures` per layer, the dead one left out;
    `pairs` [N][N]: share of expert i that expert j has too; `swap` [N][N]: channels of j that i lacks, of all.
    """
    bits = (np.asarray(signatures).astype(np.int64)[None] >> np.arange(experts)[:, None, None]) & 1
    channels = signatures.shape[1]
    both = np.einsum("ilc,jlc->ijl", bits, bits)
    size = bits.sum(axis=2)
    count = bits.sum(axis=0)
    return {
        "size": (size / channels).mean(axis=1).tolist(),
        "permanent": float((count == experts).mean()),
        "union": float((count > 0).mean()),
        "dead": float((count == 0).mean()),
        "live_signatures": [int(np.unique(layer[layer > 0]).size) for layer in np.asarray(signatures)],
        "pairs": (both / np.maximum(size[:, None, :], 1)).mean(axis=2).tolist(),
        "swap": ((size[None] - both) / channels).mean(axis=2).tolist(),
    }
