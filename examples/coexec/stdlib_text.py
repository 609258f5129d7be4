"""The source text of Python's own standard library as a byte-level corpus."""

import functools
import pathlib
import sysconfig

import numpy as np

VOCABULARY = 256
_BYTES_MAX = 1_000_000


@functools.lru_cache(maxsize=1)
def load():
    """Returns the text as int64 byte values [n], n <= one million, the same on every call."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    text = bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= _BYTES_MAX:
            break
    return np.frombuffer(bytes(text[:_BYTES_MAX]), dtype=np.uint8).astype(np.int64)


def random_windows(batch, length):
    """Draws `batch` windows of length + 1 bytes with numpy's global generator; int64 [batch, length + 1]."""
    text = load()
    starts = np.random.randint(0, len(text) - length - 1, size=batch)
    return np.stack([text[start : start + length + 1] for start in starts])
