"""The harness itself: each kind of difference that matters must be found."""

import equality
import numpy as np
import pytest
import torch
from coexec.program import Program, make_optimizer
from torch import nn


class Tiny(Program):
    """One linear layer with BatchNorm, three steps are enough to fill every kind of state."""

    def __init__(self):
        super().__init__(0)
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.optimizer = make_optimizer("adam", self.net.parameters())
        self.models, self.optimizers = {"net": self.net}, {"net": self.optimizer}

    def step(self, i):
        """Returns the loss as a float."""
        self.optimizer.zero_grad()
        loss = self.net(torch.randn(4, 3)).square().sum()
        loss.backward()
        self.optimizer.step()
        self.log.append(loss.item())
        return self.log[-1]


def flip_parameter_bit(program):
    """The smallest possible wrong value."""
    program.net[0].weight.detach().numpy().view(np.uint32)[1, 1] ^= 1


def bump_version(program):
    """An extra in-place write that changes no value."""
    with torch.no_grad():
        program.net[0].weight.add_(0.0)


def drop_grad(program):
    """A gradient that is missing instead of present."""
    program.net[0].bias.grad = None


def change_running_mean(program):
    """BatchNorm statistics one update ahead."""
    program.net[1].running_mean.numpy()[0] += 1e-7


def change_moment(program):
    """Optimizer state off by a little."""
    program.optimizer.state[program.net[0].weight]["exp_avg"].numpy()[0] *= 1.0000001


def draw_random(program):
    """One random number drawn too many."""
    torch.rand(1)


def change_learning_rate(program):
    """An option that a scheduler forgot."""
    program.optimizer.param_groups[0]["lr"] *= 0.5


def change_log(program):
    """A logged value off in the last bit."""
    program.log[-1] = np.nextafter(program.log[-1], np.inf).item()


def change_stride(program):
    """Same values, other memory layout."""
    weight = program.net[0].weight
    weight.data = weight.data.t().contiguous().t()


DAMAGES = {
    "param:net.0.weight": flip_parameter_bit,
    "version:net.0.weight": bump_version,
    "grad:net.0.bias": drop_grad,
    "buffer:net.1.running_mean": change_running_mean,
    "optimizer:net.0.0.exp_avg": change_moment,
    "rng.torch": draw_random,
    "option:net.0.lr": change_learning_rate,
    "log": change_log,
    "param:net.0.weight: stride": change_stride,
}


def outcome(damage=None):
    """Runs Tiny for three steps, applies `damage`, and returns the Outcome."""
    program = Tiny()
    losses, error = equality.run_steps(program.step, 3)
    if damage:
        damage(program)
    return equality.Outcome(losses, program.state(), error=error)


def test_equal_runs_show_no_difference():
    """The control for the damages below."""
    assert equality.differences(outcome(), outcome()) == []


@pytest.mark.parametrize("where", DAMAGES)
def test_damage_is_found_and_named(where):
    """Each damage is reported at the right place."""
    found = equality.differences(outcome(), outcome(DAMAGES[where]))
    assert any(line.startswith(where) for line in found), found


def test_reading_the_state_changes_nothing():
    """The harness must not disturb what it measures."""
    program = Tiny()
    program.step(0)
    assert equality.same(program.state(), program.state())


def test_nan_equals_itself_and_negative_zero_differs():
    """Bitwise means bitwise."""
    assert equality.same([float("nan")], [float("nan")])
    assert not equality.same([0.0], [-0.0])
    assert not equality.same(1, 1.0)


def test_exceptions_are_compared():
    """Another message or another type is a difference."""
    left = equality.Outcome([], {}, error=(ValueError, "a"))
    assert equality.differences(left, equality.Outcome([], {}, error=(ValueError, "a"))) == []
    assert equality.differences(left, equality.Outcome([], {}, error=(ValueError, "b")))
    assert equality.differences(left, equality.Outcome([], {}))


def test_covered_share_counts_late_steps_only():
    """Recording steps at the start do not count, missing rows are an error."""
    rows = [{"device_ops": 10, "covered_ops": 0}] * 20 + [{"device_ops": 10, "covered_ops": 9}] * 5
    assert equality.covered_share(rows) == pytest.approx(0.9)
    with pytest.raises(AssertionError):
        equality.covered_share(rows[:20])
