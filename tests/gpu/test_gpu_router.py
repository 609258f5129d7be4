"""The router on the device: against the one on the processor, and bits against cuts and neighbours."""

import numpy as np
import pytest
from outrider import _core

pytestmark = pytest.mark.gpu
SHAPE = {"experts": 5, "vocab": 1000, "context": 2048, "pages": 400}
WIDTHS = [(256, 4), (512, 4), (64, 4), (40, 4), (96, 1), (256, 1), (1024, 8)]
TOKENS = 1300


def routers(width: int, heads: int):
    shape = {"width": width, "heads": heads, "threads": 4} | SHAPE
    return [_core.RouterPasses(device=device, **shape) for device in ("cuda", "cpu")]


def text(tokens: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SHAPE["vocab"], tokens, dtype=np.int32)


@pytest.mark.parametrize(("width", "heads"), WIDTHS)
def test_logits_are_those_of_the_processor(width, heads):
    device, processor = routers(width, heads)
    ids, pages = text(TOKENS, 1), np.arange(100, 182, dtype=np.int32)
    found, _ = device.run([(ids, 0, pages)])
    expected, _ = processor.run([(ids, 0, pages)])
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("width", "heads"), WIDTHS[:3])
def test_bits_depend_on_the_text_alone(width, heads):
    device, _ = routers(width, heads)
    ids, other = text(TOKENS, 1), text(50, 2)
    whole, _ = device.run([(ids, 0, np.arange(82, dtype=np.int32))])
    pages, beside = np.arange(399, 317, -1, dtype=np.int32), np.arange(200, 210, dtype=np.int32)
    for size in (1, 37, 700):
        for first in range(0, TOKENS if size > 1 else 90, size):
            piece = ids[first : first + size]
            again, _ = device.run([(other[:3], 0, beside), (piece, first, pages), (other[3:9], 3, beside)])
            assert (again[3:-6] == whole[first : first + size]).all(), (size, first)


def test_many_texts_share_a_launch():
    device, _ = routers(256, 4)
    texts = [(text(1 + i % 40, i), 0, np.arange(3 * i, 3 * i + 3, dtype=np.int32)) for i in range(100)]
    alone = np.concatenate([device.run([one])[0] for one in texts])
    assert (device.run(texts)[0] == alone).all()
