"""Experts of stacked weights, other ones in each step: losses are those of eager, and no weights are copied."""

import random

import outrider
import pytest
import torch
from torch.nn import functional

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

DEVICE, LAYERS, EXPERTS, ROWS, STEPS = "cuda", 3, 8, 8, 60
# Width and hidden channels: views that device graphs copy, and views of more than 1 MiB, which they do not.
SIZES = {"small": (64, 128), "large": (1024, 4096)}


class Experts:
    """Weights from a seed, and one step over them."""

    def __init__(self, width, hidden):
        generator = torch.Generator(DEVICE).manual_seed(1)

        def draw(*shape):
            return torch.randn(*shape, device=DEVICE, generator=generator) / shape[-1] ** 0.5

        self.up = [draw(EXPERTS, hidden, width) for _ in range(LAYERS)]
        self.down = [draw(EXPERTS, width, hidden) for _ in range(LAYERS)]
        self.mix = [draw(width, width) for _ in range(LAYERS)]
        self.x = draw(ROWS, width)

    def step(self, experts):
        x = self.x
        for up, down, mix in zip(self.up, self.down, self.mix, strict=True):
            x = torch.tanh(torch.relu(x @ mix) + x).mul(0.5).add(0.1)  # long enough to be captured
            shares = x.chunk(len(experts))
            outputs = [functional.silu(rows @ up[e].t()) @ down[e].t() for e, rows in zip(experts, shares, strict=True)]
            x = x + torch.cat(outputs)
        return x.sum().item()

    def bytes(self):
        return sum(w.nbytes for w in (*self.up, *self.down))


def run(size, writes, wrap):
    """Losses of all steps, and the bytes that were allocated at most on top of the weights."""
    model, draws, losses = Experts(*SIZES[size]), random.Random(3), []
    step = wrap(model.step)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    for i in range(STEPS):
        losses.append(step(draws.sample(range(EXPERTS), 2 if i % 2 else 4)))
        if writes and i % 13 == 0:
            model.up[i % LAYERS].mul_(1.01)
        if writes and i % 11 == 0:
            model.down[1].data[i % EXPERTS].add_(0.001)
    outrider.flush()
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    return losses, peak - before, model.bytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("writes", [False, True], ids=["read", "written"])
def test_experts_that_move(size, writes):
    with torch.no_grad():
        eager, _, _ = run(size, writes, lambda step: step)
        outrider.clear()
        losses, extra, weights = run(size, writes, lambda step: outrider.coexec(step, name=f"moving-{size}-{writes}"))
    assert losses == eager
    late = [row for row in outrider.report()[STEPS // 2 :] if row["lane"] == "outer"]
    assert len(late) > STEPS // 4, "most steps are covered"
    assert max(row["copied_bytes"] for row in late) == 0
    if size == "large":
        assert extra < weights / 4, "weights were copied"
