"""Shared set-up of the Python tests: import paths and one intra-op thread.

Nothing here imports Outrider: tests of the shell replace the compiled core before they do.
"""

import pathlib
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
for _folder in (_ROOT / "python", _ROOT / "examples", _ROOT / "tests" / "python", _ROOT / "tests" / "support"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))


@pytest.fixture(autouse=True)
def one_intra_op_thread():
    """Bitwise twins need the same thread count, and two cores are all a CI machine has."""
    import torch

    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
