"""Writes scikit-learn's digits as CSV for the C++ example: label, then 64 grey levels 0..16 per line.

python examples/cpp/export_digits.py digits.csv
"""

import sys
from pathlib import Path


def main(path):
    """Writes all 1797 images to `path`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = zip(data.target, data.data.astype(int), strict=True)
    Path(path).write_text("".join(f"{label},{','.join(map(str, pixels))}\n" for label, pixels in rows))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
