"""The channel-record FFN of the extension module against a masked dense FFN of torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from outrider import _core

WIDTH, CHANNELS, EXPERTS = 96, 130, 5


def _array(tensor):
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def layer(request):
    generator = torch.Generator().manual_seed(1)
    shapes = {"gate": (CHANNELS, WIDTH), "up": (CHANNELS, WIDTH), "down": (WIDTH, CHANNELS)}
    scaled = {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}
    matrices = {name: matrix.to(request.param) for name, matrix in scaled.items()}
    signatures = torch.randint(0, 2**EXPERTS, (CHANNELS,), generator=generator)
    return matrices, signatures


def _reference(layer, x, experts):
    matrices, signatures = layer
    gate, up, down = (matrices[name].double() for name in ("gate", "up", "down"))
    mask = (signatures >> experts.long().unsqueeze(1)) & 1
    return (F.silu(x.double() @ gate.T) * (x.double() @ up.T) * mask) @ down.T


def _ffn(layer, threads):
    matrices, signatures = layer
    arrays = {name: _array(matrix) for name, matrix in matrices.items()}
    return _core.TiedFfn(**arrays, signatures=signatures.numpy().astype(np.uint16), experts=EXPERTS, threads=threads)


@pytest.mark.parametrize(("form", "tokens"), [("prefill", 150), ("decode", 32)])
def test_both_forms_agree_with_the_masked_dense_ffn(layer, form, tokens):
    generator = torch.Generator().manual_seed(2)
    dtype = layer[0]["gate"].dtype
    x = torch.randn(tokens, WIDTH, generator=generator).to(dtype)
    experts = torch.randint(0, EXPERTS, (tokens,), generator=generator, dtype=torch.uint8)
    results = []
    for threads in (1, 2):
        y = torch.full_like(x, float("nan"))
        getattr(_ffn(layer, threads), form)(_array(x), _array(y), experts.numpy())
        results.append(y)
    assert torch.equal(results[0], results[1])
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(results[0].double(), _reference(layer, x, experts), rtol=tolerance, atol=tolerance)


def test_wrong_arrays_are_refused(layer):
    ffn = _ffn(layer, 1)
    dtype = layer[0]["gate"].dtype
    x = _array(torch.zeros(3, WIDTH, dtype=dtype))
    experts = np.zeros(3, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"E_SHAPE: expected a contiguous matrix \[2, 96\]"):
        ffn.prefill(x, x.copy(), experts[:2])
    with pytest.raises(ValueError, match="E_SHAPE"):
        ffn.prefill(x, np.zeros((3, WIDTH), dtype=np.float64)[:, ::1].astype(np.float32)[:, :90], experts)
    with pytest.raises(ValueError, match="E_EXPERTS: token 1: expert 9, expected less than 5"):
        ffn.decode(x, x.copy(), np.array([0, 9, 0], dtype=np.uint8))
    with pytest.raises(ValueError, match="engine: found abacus"):
        ffn.prefill(x, x.copy(), experts, engine="abacus")
    assert "portable" in ffn.engines
