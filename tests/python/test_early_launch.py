"""Parts of a forward pass that go to an idle graph runner before BACKWARD is validated."""

import functools
import time

import equality
import outrider
import pytest
import torch
from coexec.program import Program
from outrider import _core
from torch import nn

STEPS = 30
NEVER, WHEN_IDLE, ALWAYS = 0, 1, 2


class Pausing(Program):
    """A training step with a value read at its end, which sleeps before BACKWARD and notes when its forward pass was.

    `state` elements of a buffer are written in the forward pass; `branches` paths are taken in turns.
    """

    def __init__(self, state=8, branches=1, pause_s=0.0):
        super().__init__(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.heads = nn.ModuleList(nn.Linear(16, 4) for _ in range(branches))
        self.counter = torch.zeros(state)
        self.pause_s = pause_s
        self.forward_us = []
        self.models = {"layers": self.layers, "heads": self.heads}
        parameters = [*self.layers.parameters(), *self.heads.parameters()]
        self.optimizers = {"sgd": torch.optim.SGD(parameters, lr=0.05)}

    def step(self, i):
        """One step; returns the loss as a number."""
        start_us = time.monotonic_ns() / 1e3
        self.optimizers["sgd"].zero_grad()
        self.counter += 1
        x = torch.ones(8, 16)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        loss = self.heads[i % len(self.heads)](x).square().mean()
        time.sleep(self.pause_s)
        self.forward_us.append((start_us, time.monotonic_ns() / 1e3))
        loss.backward()
        self.optimizers["sgd"].step()
        self.log.append(loss.item())
        return self.log[-1]

    def extras(self):
        """The buffer."""
        return {"counter": self.counter}


def steps_begun_early(early, **program):
    """In how many of the last ten steps the runner began to work before BACKWARD."""
    with equality.fresh_core(lane="outer", early_launch=early):
        built = Pausing(pause_s=0.01, **program)
        step = outrider.coexec(built.step)
        for i in range(STEPS):
            step(i)
            outrider.flush()
        assert [row["lane"] for row in outrider.report()[-10:]] == ["outer"] * 10
        begun_us = [span["start_us"] for span in _core.timeline() if span["kind"] == "run"]
    return sum(any(start < at < end for at in begun_us) for start, end in built.forward_us[-10:])


def test_an_idle_runner_starts_before_backward():
    assert steps_begun_early(WHEN_IDLE) == 10
    assert steps_begun_early(NEVER) == 0


def test_large_state_is_not_copied_for_an_early_part():
    assert steps_begun_early(ALWAYS, state=1 << 16) == 0


@pytest.mark.parametrize("early", [NEVER, WHEN_IDLE, ALWAYS])
@pytest.mark.parametrize("state", [8, 1 << 16])
@pytest.mark.parametrize("branches", [1, 3])
def test_equal_and_covered(branches, state, early):
    """An early part is no commit: the path may still become another one without a divergence."""
    build = functools.partial(Pausing, state, branches)
    twin = equality.run_coexec(build, STEPS, early_launch=early)
    equality.assert_equal(equality.run_eager(build, STEPS), twin)
    late = twin.rows[20:]
    assert all(row["lane"] == "outer" and not row["divergences"] for row in late), equality.why_not(twin.rows)
