"""The CUDA form of the channel-record FFN on the device, against the masked dense FFN in fp64."""

import shutil

import pytest
import tied_ffn
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", list(tied_ffn.checks()))
def test_kernels_agree_with_the_masked_dense_ffn(name):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernels are compiled for compute capability 9.0")
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    assert tied_ffn.checks()[name]()
