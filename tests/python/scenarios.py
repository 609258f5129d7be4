"""Small programs with one difficulty each, and the twin test that runs them."""

import functools

import equality
import numpy as np
import torch
import torch.nn.functional as F
from coexec.program import Program, make_optimizer
from torch import nn

STEPS = 14
COVERED_STEP = 8  # from here on a regular program is covered in its lane
ODD_STEP = 8  # the step at which a difficulty appears in a program that is covered by then

MODES = {
    "auto": {},
    "inner": {"lane": "inner"},
    "flush_every": {"flush": "every"},
    "flush_random": {"flush": "random"},
    "early": {"early_launch": 2},
}


class Bench(Program):
    """A little training program whose step is made by `make_step(bench)`.

    net        6 -> 3, with dropout and LayerNorm, unless `net` builds another one
    optimizer  by name
    extra      whatever a scenario wants compared at the end
    """

    def __init__(self, make_step, optimizer="adamw", net=None):
        super().__init__(0)
        self.net = net() if net else default_net()
        self.optimizer = make_optimizer(optimizer, self.net.parameters())
        self.models = {"net": self.net}
        self.optimizers = {"net": self.optimizer}
        self.extra = {}
        self.body = make_step(self)

    def step(self, i):
        """Runs the scenario's own step."""
        return self.body(i)

    def extras(self):
        """What the scenario collected."""
        return dict(self.extra)

    def weight(self):
        """The first parameter: the one most scenarios pick on."""
        return next(self.net.parameters())

    def batch(self):
        """Draws features [5, 6] and labels [5]."""
        features = torch.from_numpy(np.random.randn(5, 6).astype(np.float32))
        return features, torch.from_numpy(np.random.randint(0, 3, 5))

    def loss(self):
        """One forward pass on a new batch."""
        features, labels = self.batch()
        return F.cross_entropy(self.net(features), labels)

    def train(self):
        """One whole ordinary training step; returns the loss tensor."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss


def default_net():
    """Returns the usual small network."""
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


def registers(programs):
    """A decorator that puts a scenario into `programs`, by its name."""

    def program(make):
        programs[make.__name__] = make
        return make

    return program


def finish(bench, loss):
    """Backward and update; returns the loss."""
    loss.backward()
    bench.optimizer.step()
    return loss


def check(make_step, mode, *, steps=STEPS, resume=False, optimizer="adamw", net=None, changes=None):
    """Runs the scenario eagerly and co-executed and asserts bitwise equality.

    `changes` is an optional core option dict on top of the mode's. Returns the co-executed
    Outcome for further assertions.
    """
    build = functools.partial(Bench, make_step, optimizer, net)
    eager = equality.run_eager(build, steps, resume)
    assert eager.losses, "the scenario must get through at least one step eagerly"
    twin = equality.run_coexec(build, steps, resume, **(MODES[mode] | (changes or {})))
    equality.assert_equal(eager, twin)
    return twin


def run_twins(drive, mode):
    """Runs `drive(wrap)` eagerly and co-executed; asserts equality and returns the co-executed Outcome."""
    import outrider

    eager = equality.Outcome([], drive(lambda step: step).state())
    with equality.fresh_core(**MODES[mode]):
        bench = drive(outrider.coexec)
        outrider.flush()
        twin = equality.Outcome([], bench.state(), outrider.report())
    equality.assert_equal(eager, twin)
    return twin


def assert_lane(twin, mode, outer=True):
    """The late steps ran in the lane that the mode promises; without that, equality says little."""
    lane = "inner" if mode == "inner" or not outer else "outer"
    used = equality.lanes_used(twin.rows, COVERED_STEP)
    assert used == {lane: len(twin.rows) - COVERED_STEP}, f"{used}: {equality.why_not(twin.rows, COVERED_STEP)}"
