"""A step whose memory bears no quarters of it ahead: a little of its first forward pass still goes ahead as a graph."""

import functools
import time

import equality
import outrider
import pytest
import torch
from coexec.program import Program
from outrider import _core
from torch import nn

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

STEPS = 40
NEVER, WHEN_IDLE = 0, 1
DEVICE = "cuda"
# Of 8 MB each: a pass makes 96 and keeps 48, so that a quarter of both passes is more than a step may keep longer.
ROWS, WIDTH, LAYERS = 2048, 1024, 48


class Accumulating(Program):
    """A training step of two passes and a value read at its end, which sleeps at the end of its first forward pass."""

    def __init__(self, pause_s=0.0):
        super().__init__(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)).to(DEVICE)
        self.inputs = torch.linspace(-1, 1, ROWS * WIDTH).view(ROWS, WIDTH).to(DEVICE)
        self.pause_s = pause_s
        self.forward_us = []
        self.models = {"layers": self.layers}
        self.optimizers = {"sgd": torch.optim.SGD(self.layers.parameters(), lr=0.05)}

    def forward(self):
        x = self.inputs
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean()

    def step(self, i):
        """One step; returns the loss of the second pass as a number."""
        self.optimizers["sgd"].zero_grad()
        start_us = time.monotonic_ns() / 1e3
        loss = self.forward()
        time.sleep(self.pause_s)
        self.forward_us.append((start_us, time.monotonic_ns() / 1e3))
        loss.backward()
        loss = self.forward()
        loss.backward()
        self.optimizers["sgd"].step()
        self.log.append(loss.item())
        return self.log[-1]


@pytest.mark.parametrize("early,begun", [(WHEN_IDLE, 10), (NEVER, 0)])
def test_the_device_starts_before_backward(early, begun):
    with equality.fresh_core(lane="outer", early_launch=early):
        built = Accumulating(pause_s=0.01)
        step = outrider.coexec(built.step)
        for i in range(STEPS):
            step(i)
            outrider.flush()
        rows = outrider.report()[-10:]
        assert [row["lane"] for row in rows] == ["outer"] * 10, equality.why_not(rows)
        assert [row["tier"] for row in rows] == ["T2"] * 10, equality.why_not(rows)
        runs_us = [span["start_us"] for span in _core.timeline() if span["kind"] == "run"]
    assert sum(any(start < at < end for at in runs_us) for start, end in built.forward_us[-10:]) == begun


@pytest.mark.parametrize("early", [NEVER, WHEN_IDLE])
def test_equal_and_covered(early):
    twin = equality.run_coexec(functools.partial(Accumulating), STEPS, lane="outer", early_launch=early)
    equality.assert_equal(equality.run_eager(functools.partial(Accumulating), STEPS), twin)
    assert all(row["lane"] == "outer" and not row["divergences"] for row in twin.rows[20:]), equality.why_not(twin.rows)
