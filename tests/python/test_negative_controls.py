"""Protections switched off one at a time: each must be missed, or the tests above prove nothing.

Every control runs three times: eager, with the protection (equal), without it (different). The
graph runner is slowed down, so that unprotected reads come too early for certain.
"""

import functools

import equality
import numpy as np
import pytest
import torch
from scenarios import Bench

from coexec import digits_cnn

pytestmark = pytest.mark.timeout(120)

STEPS = 16
DELAY = {"runner_delay_us": 2000}


def version_reads(bench):
    """Logs version counters that only the kernels of foreach ops bump."""

    def step(i):
        loss = bench.train()
        bench.log.append([parameter._version for parameter in bench.net.parameters()])
        state = bench.optimizer.state[bench.weight()]
        bench.log.append(state["exp_avg"]._version)
        return loss

    return step


def reused_feed(bench):
    """Overwrites the batch's numpy buffer as soon as the step is over."""
    buffer = np.zeros((5, 6), np.float32)

    def step(i):
        buffer[...] = np.random.randn(5, 6)
        labels = torch.from_numpy(np.random.randint(0, 3, 5))
        bench.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(bench.net(torch.from_numpy(buffer)), labels)
        loss.backward()
        bench.optimizer.step()
        buffer.fill(np.nan)
        return loss

    return step


CONTROLS = {
    "feed_clone": functools.partial(Bench, reused_feed, "adamw_foreach"),
    "version_replay": functools.partial(Bench, version_reads, "adamw_foreach"),
}


@pytest.mark.parametrize("lane", ["auto", "inner"])
@pytest.mark.parametrize("protection", CONTROLS)
def test_protection_is_needed(protection, lane):
    """Equal with the protection, different without it, everything else the same."""
    build = CONTROLS[protection]
    eager = equality.run_eager(build, STEPS)
    protected = equality.run_coexec(build, STEPS, lane=lane, **DELAY)
    equality.assert_equal(eager, protected)
    assert equality.covered_share(protected.rows, 8) > 0.5, equality.why_not(protected.rows, 8)
    unprotected = equality.run_coexec(build, STEPS, lane=lane, **DELAY, **{protection: 0})
    assert equality.differences(eager, unprotected), f"switching off {protection} went unnoticed"


def test_digits_program_notices_a_missing_feed_clone():
    """The example program's own trap, the buffer of NaNs, works."""
    build = functools.partial(digits_cnn.build, 0, log_every=10)
    eager = equality.run_eager(build, 24)
    unprotected = equality.run_coexec(build, 24, **DELAY, feed_clone=0)
    assert equality.differences(eager, unprotected)
