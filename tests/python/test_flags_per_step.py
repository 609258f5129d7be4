"""Programs that set numeric flags inside the step: covered, and equal to eager where the flag decides bits."""

import os
import subprocess
import sys

import equality
import pytest
import torch
import torch.nn.functional as F
from scenarios import Bench
from torch.nn.attention import SDPBackend, sdpa_kernel

STEPS = 30


def sets_and_resets(bench):
    """A context manager around the forward pass, in every step."""

    def step(i):
        x = torch.randn(4, 6)
        with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=i % 2 == 0):
            loss = F.mse_loss(bench.net(x), torch.ones(4, 3))
        bench.optimizer.zero_grad()
        loss.backward()
        bench.optimizer.step()
        return loss

    return step


def alternates(bench):
    """Another precision in every second step."""

    def step(i):
        torch.set_float32_matmul_precision("high" if i % 2 else "highest")
        loss = F.mse_loss(bench.net(torch.randn(4, 6)), torch.ones(4, 3))
        bench.optimizer.zero_grad()
        loss.backward()
        bench.optimizer.step()
        return loss

    return step


@pytest.fixture(autouse=True)
def precision_as_before():
    """Puts the precision back."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("make_step", [sets_and_resets, alternates])
@pytest.mark.parametrize("lane", ["inner", "auto"])
def test_equal(make_step, lane):
    """Bit for bit, in both lanes."""
    build = lambda: Bench(make_step)  # noqa: E731
    eager = equality.run_eager(build, STEPS)
    equality.assert_equal(eager, equality.run_coexec(build, STEPS, lane=lane))


def test_a_flag_that_returns_is_the_same_environment():
    """The steps are covered although flags were set and reset in each; a replay is never needed under other flags."""
    twin = equality.run_coexec(lambda: Bench(sets_and_resets), STEPS)
    assert equality.covered_share(twin.rows) >= 0.95, equality.why_not(twin.rows)
    assert equality.lanes_used(twin.rows) == {"inner": STEPS - 20}


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_the_first_use_may_come_with_gradients_off(mode):
    """What the library learns about the engine when it loads does not depend on what the program is at."""
    program = f"""
import torch, outrider
with torch.{mode}():
    step = outrider.coexec(lambda x: (x @ x).sum().item())
    values = [step(torch.ones(3, 3)) for _ in range(8)]
assert values == [27.0] * 8, values
weight = torch.ones(3, requires_grad=True)
outrider.coexec(lambda: (weight * 2).sum().backward())()
assert weight.grad.tolist() == [2.0] * 3
covered = max(row["covered_share"] for row in outrider.report())
print(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), covered)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    grad, inference, covered = done.stdout.split()
    assert (grad, inference) == ("True", "False") and float(covered) > 0
