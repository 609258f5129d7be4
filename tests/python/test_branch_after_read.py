"""Programs that read a value and then branch on it: the rest of the step follows the plan of the branch."""

import functools

import equality
import outrider
import pytest
import torch
from coexec.program import Program
from torch import nn

STEPS = 120
SETTLED = 72  # three rounds of all courses: each has a plan
NEVER, WHEN_IDLE, ALWAYS = 0, 1, 2


class Branching(Program):
    """Inference that reads a choice at each of three depths and computes with the chosen layer alone. A course of
    choices lasts four steps.

    `needs`: what one branch uses of the time before the read, and the other does not: nothing, a value that the program
    holds, or an input that is another in each step.
    """

    def __init__(self, needs):
        super().__init__(0)
        self.needs = needs
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.sums, self.tick = torch.zeros(8, 16), torch.zeros(1, dtype=torch.int64)
        self.inputs = [torch.full((8, 16), 0.1 * k) for k in range(5)]
        self.models, self.optimizers = {"layers": self.layers}, {}

    def step(self, i):
        """One step; returns a number of its result."""
        with torch.no_grad():
            fed = self.inputs[i % len(self.inputs)]
            x = torch.ones(8, 16) + fed
            for depth in range(3):
                hidden = torch.tanh(x)
                extra = hidden * 0.5
                if (self.tick // (4 * (depth + 1)) % 2).item() == 0:
                    x = x + self.layers[depth](hidden)
                else:
                    x = x - self.layers[3](hidden) + {"nothing": hidden, "value": extra, "input": fed}[self.needs]
                self.sums.mul_(0.9).add_(x)
            self.tick.add_(1)
            self.log.append(x.sum().item())
        return self.log[-1]

    def extras(self):
        """What the steps write in place."""
        return {"sums": self.sums, "tick": self.tick}


def twin_of(needs, early):
    """The co-executed run, equal to the eager one bit for bit."""
    build = functools.partial(Branching, needs)
    twin = equality.run_coexec(build, STEPS, early_launch=early)
    equality.assert_equal(equality.run_eager(build, STEPS), twin)
    return twin


@pytest.mark.parametrize("early", [NEVER, WHEN_IDLE, ALWAYS])
@pytest.mark.parametrize("needs", ["nothing", "value", "input"])
def test_a_step_that_branches_behind_a_read_follows_known_plans(needs, early):
    late = twin_of(needs, early).rows[SETTLED:]
    assert all(row["lane"] == "outer" and not row["divergences"] for row in late), equality.why_not(late)
    assert all(row["fetches"] >= 3 for row in late)


def test_a_plan_with_another_tensor_in_a_list_is_not_taken():
    """Which weight stands in the list and which function follows is learned in two pairs, and then mixed."""
    first, second, x = torch.randn(4), torch.randn(4), torch.randn(4)

    def step(weight, function):
        with torch.no_grad():
            return function(torch.cat([weight, x]) * 2)

    pairs = [(first, torch.relu)] * 5 + [(second, torch.sigmoid)] * 6 + [(first, torch.relu)] * 2
    mixed = [(first, torch.sigmoid), (second, torch.relu)]
    with equality.fresh_core(lane="outer"):
        covered = outrider.coexec(step, name="pairs")
        for weight, function in pairs + mixed:
            assert torch.equal(covered(weight, function).clone(), step(weight, function))
            outrider.flush()
        assert [row["lane"] for row in outrider.report()[-4:-2]] == ["outer"] * 2


class Clipped(Program):
    """Training that updates only where the loss, read behind the clipping, is high: one plan alone uses gradients."""

    def __init__(self, bound):
        super().__init__(0)
        self.bound = bound
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.models, self.optimizers = {"net": self.net}, {"adamw": self.optimizer}

    def step(self, i):
        """One step; gradients go when the next one begins."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(torch.randn(5, 6)), torch.randint(0, 3, (5,)))
        loss.backward()
        nn.utils.clip_grad_value_(self.net.parameters(), 0.05)
        if loss.item() > self.bound:
            self.optimizer.step()
        return loss.detach()


@pytest.mark.parametrize("delay_us", [0, 3000])
@pytest.mark.parametrize("early", [NEVER, WHEN_IDLE, ALWAYS])
def test_a_runner_that_is_behind_keeps_what_the_other_plan_needs(early, delay_us):
    """The program has let go of the gradients when the part runs that would drop them; another one needs them."""
    build = functools.partial(Clipped, 1.1)
    twin = equality.run_coexec(build, 40, early_launch=early, runner_delay_us=delay_us)
    equality.assert_equal(equality.run_eager(build, 40), twin)
    assert equality.lanes_used(twin.rows, 24).get("outer", 0) >= 12, equality.why_not(twin.rows, 24)
