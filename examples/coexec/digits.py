"""scikit-learn's handwritten digits: 1797 images of 8x8 grey levels, real and tiny."""

import functools

import numpy as np


@functools.lru_cache(maxsize=1)
def load():
    """Returns (images float32 [1797, 8, 8] in 0..1, labels int64 [1797])."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int64)
