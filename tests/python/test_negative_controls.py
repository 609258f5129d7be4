"""Protections switched off one at a time: each must be missed, or the other tests prove nothing.

Every control runs three times: eager, with the protection (equal), and without it (different). What is compared is
collected in covered steps only. The graph runner is slowed down, so that unprotected reads come too early for certain.
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
COVERED_STEP = 10  # from here on every step is covered in the wanted lane
DELAY = {"runner_delay_us": 2000}


def version_reads(bench):
    """Logs version counters that only the kernels of foreach ops bump."""
    loss = bench.train()
    bench.log.append([parameter._version for parameter in bench.net.parameters()])
    bench.log.append(bench.optimizer.state[bench.weight()]["exp_avg"]._version)
    return loss


BUFFER = np.zeros((5, 6), np.float32)


def reused_feed(bench):
    """Overwrites the batch's numpy buffer as soon as the step is over."""
    BUFFER[...] = np.random.randn(5, 6)
    labels = torch.from_numpy(np.random.randint(0, 3, 5))
    bench.optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(bench.net(torch.from_numpy(BUFFER)), labels)
    loss.backward()
    bench.optimizer.step()
    BUFFER.fill(np.nan)
    return loss


def raw_reads(bench):
    """Logs elements of a parameter right behind its update, read from the memory of the tensor itself.

    No operator is called on the way: `.numpy()` would dispatch a `detach`, whose result is lazy without any graft.
    """
    loss = bench.train()
    bench.log.append(bench.weight().tolist()[0])
    return loss


# protection -> (step, options that take it away from the beginning, ... from COVERED_STEP on)
# The graft stays on a tensor that has it; the outer lane's copies and version bumps begin once steps are covered.
CONTROLS = {
    "feed_clone": (reused_feed, (), ("feed_clone",)),
    "version_replay": (version_reads, (), ("version_replay",)),
    "graft": (raw_reads, ("graft", "graft_fallback"), ()),
}


def build(step, off=()):
    """A bench that runs `step`; from COVERED_STEP on it keeps its log, and the options `off` are 0."""
    import outrider

    def make(bench):
        def body(i):
            if i == COVERED_STEP - 1:
                outrider.options(**dict.fromkeys(off, 0))
            loss = step(bench)
            if i < COVERED_STEP:
                bench.log.clear()
            return loss

        return body

    return functools.partial(Bench, make, "adamw_foreach")


@pytest.mark.parametrize("lane", equality.LANES)
@pytest.mark.parametrize("protection", CONTROLS)
def test_protection_is_needed(protection, lane):
    """Equal with the protection, different without it, everything else the same."""
    step, off_from_start, off_later = CONTROLS[protection]
    options = {"lane": lane} | DELAY | dict.fromkeys(off_later, 1)
    eager = equality.run_eager(build(step), STEPS)
    protected = equality.run_coexec(build(step), STEPS, **options)
    equality.assert_equal(eager, protected)
    unprotected = equality.run_coexec(build(step, off_later), STEPS, **options, **dict.fromkeys(off_from_start, 0))
    assert equality.differences(eager, unprotected), f"switching off {protection} went unnoticed"
    for rows in (protected.rows, unprotected.rows):
        assert equality.lanes_used(rows, COVERED_STEP) == {lane: STEPS - COVERED_STEP}, equality.why_not(rows, 0)
        assert equality.covered_share(rows, COVERED_STEP) > 0.9, equality.why_not(rows, COVERED_STEP)


def test_digits_program_notices_a_missing_feed_clone():
    """The example program's own trap, the buffer of NaNs, works."""
    program = functools.partial(digits_cnn.build, 0, log_every=10)
    eager = equality.run_eager(program, 24)
    unprotected = equality.run_coexec(program, 24, **DELAY, feed_clone=0)
    assert equality.differences(eager, unprotected)


@pytest.mark.parametrize("lane", ["auto", "inner"])
def test_without_the_graft_writes_arrive_at_once(lane):
    """Where ordinary tensors cannot be made lazy, their writes are synchronous: slower, and right."""
    options = {"lane": lane, "graft": 0} | DELAY
    eager = equality.run_eager(build(raw_reads), STEPS)
    twin = equality.run_coexec(build(raw_reads), STEPS, **options)
    equality.assert_equal(eager, twin)
    assert equality.covered_share(twin.rows, COVERED_STEP) > 0.5, equality.why_not(twin.rows, COVERED_STEP)
    assert all(row["flushes"].get("FLUSH_ESCAPED", 0) > 0 for row in twin.rows[COVERED_STEP:])
    if lane == "auto":
        assert {row["note"].partition(":")[0] for row in twin.rows} == {"INNER_ENV"}
