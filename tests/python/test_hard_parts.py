"""Steps whose parts lie apart: cut by a fetch, or with the backward pass outside."""

import equality
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenarios import COVERED_STEP, MODES, ODD_STEP, STEPS, Bench, assert_lane, check, run_twins

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]


CHANGES = {
    "in_place": lambda x: x.mul_(0.5),
    "through_data": lambda x: x.data.add_(1.0),
    "through_numpy": lambda x: np.multiply(x.numpy(), 2.0, out=x.numpy()),
    "replaced": lambda x: x.copy_(torch.linspace(-1, 1, x.numel()).view_as(x)),
}


@pytest.mark.parametrize("always", [False, True], ids=["one_step", "each_step"])
@pytest.mark.parametrize("change", CHANGES)
def test_feed_changed_between_two_parts(mode, change, always):
    """A fetch cuts the step in two; a tensor that was fed to the first part changes before it is used in the second."""

    def make(bench):
        def step(i):
            features, labels = bench.batch()
            shift = torch.tensor(np.random.randn(5, 3).astype(np.float32))
            bench.optimizer.zero_grad()
            scores = bench.net(features) + shift
            loss = F.cross_entropy(scores, labels)
            bench.log.append(loss.item())
            if always or i == ODD_STEP:
                CHANGES[change](shift)
            loss.backward()
            bench.optimizer.step()
            bench.extra[f"after.{i}"] = (bench.net[-1].bias.detach() + shift).sum(0)
            return loss

        return step

    twin = check(make, mode)
    assert all(row["fetches"] >= 1 for row in twin.rows)


@pytest.mark.parametrize("steps_later", [0, 1])
def test_backward_outside_the_step(mode, steps_later):
    """The step returns a loss; backward and the update come between two steps, or one step later."""

    def drive(wrap):
        bench = Bench(lambda bench: lambda i: bench.loss())
        step = wrap(bench.step)
        waiting = []
        for i in range(STEPS):
            waiting.append(step(i))
            if len(waiting) <= steps_later:
                continue
            loss = waiting.pop(0)
            bench.optimizer.zero_grad()
            loss.backward()
            bench.log.append(loss.item())
            bench.log.append([parameter._version for parameter in bench.net.parameters()])
            if steps_later == 0:
                bench.optimizer.step()
        return bench

    twin = run_twins(drive, mode)
    assert equality.covered_share(twin.rows, COVERED_STEP) > 0.9, equality.why_not(twin.rows, COVERED_STEP)


KEPT = {}


@pytest.mark.parametrize("used", ["read", "backward"])
def test_step_returns_nothing_and_a_global_keeps_the_loss(mode, used):
    """The only reference to the loss is a global; it is read, or differentiated, after the step."""

    def make(bench):
        def step(i):
            KEPT["loss"] = bench.train() if used == "read" else bench.loss()

        return step

    def drive(wrap):
        KEPT.clear()
        bench = Bench(make)
        step = wrap(bench.step)
        for i in range(STEPS):
            assert step(i) is None
            if used == "backward":
                bench.optimizer.zero_grad()
                KEPT["loss"].backward()
                bench.optimizer.step()
            bench.log.append(KEPT["loss"].item())
        bench.log.append(KEPT["loss"].requires_grad)
        return bench

    twin = run_twins(drive, mode)
    assert equality.covered_share(twin.rows, COVERED_STEP) > 0.9, equality.why_not(twin.rows, COVERED_STEP)
    assert_lane(twin, mode, outer=used == "read")
