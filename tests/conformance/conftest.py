"""Import paths and one intra-op thread, as for the other Python tests."""

import pathlib
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FOLDERS = (_ROOT / "python", _ROOT / "examples", _ROOT / "tests" / "python", _ROOT / "tests" / "conformance")
for _folder in _FOLDERS:
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))


@pytest.fixture(autouse=True)
def one_intra_op_thread():
    """Bitwise twins need the same thread count."""
    import torch

    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
