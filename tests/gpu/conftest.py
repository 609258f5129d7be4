"""Import paths of the GPU tests; without a CUDA device they are skipped, with one line that says so."""

import pathlib
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
for _folder in ("python", "examples", "tests/python", "tests/support", "tests/gpu"):
    sys.path.insert(0, str(_ROOT / _folder))


def pytest_collection_modifyitems(items):
    """Skips everything in this folder on a machine without a CUDA device."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if pathlib.Path(item.fspath).parent == pathlib.Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def repeatable_kernels():
    """Kernels that give the same bits twice: math attention, deterministic cuDNN, no benchmark search."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(1)
    cudnn = torch.backends.cudnn
    previous = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    with sdpa_kernel(SDPBackend.MATH):
        yield
    cudnn.deterministic, cudnn.benchmark = previous
