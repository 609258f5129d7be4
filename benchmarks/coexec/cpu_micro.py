"""Small figures: host cost of an operator, of recording, of a fetch, and of never settling."""

import functools
import random
import statistics
import time

import measure
import outrider
import torch
import torch.nn.functional as F
from outrider import _runtime
from torch import nn

_REPEATS = 9
_RECORDINGS = 15  # samples of two steps each


def _block_ms(step, count):
    start = time.perf_counter()
    for i in range(count):
        step(i)
    outrider.flush()
    return (time.perf_counter() - start) / count * 1e3


def _pair(make_step, count, repeats=_REPEATS, **options):
    """Medians over interleaved blocks of two equal steps: (eager ms, co-executed ms, rows)."""
    _runtime.core().reset()
    outrider.clear()
    step, wrapped = make_step(), outrider.coexec(make_step())
    previous = outrider.options(**options)
    eager, coexecuted = [], []
    try:
        _block_ms(wrapped, count)
        for _ in range(repeats):
            coexecuted.append(_block_ms(wrapped, count))
            _runtime.core().leave()
            eager.append(_block_ms(step, count))
        rows = outrider.report()
    finally:
        outrider.options(**previous)
        _runtime.core().leave()
    return statistics.median(eager), statistics.median(coexecuted), rows


def _chain(operations, grad):
    weight = torch.ones(4, 4, requires_grad=grad)

    def step(_):
        x = weight
        for _ in range(operations):
            x = x.mul(1.0009765625)
        return x.detach()  # history that outlives the step would keep it in the inner lane

    return step


def operator_cost():
    """Host nanoseconds per operator of a covered chain of 400 tiny multiplications, Python's own share included."""
    figures = {}
    for lane in ("inner", "outer"):
        for grad in (False, True):
            eager_ms, _, rows = _pair(functools.partial(_chain, 400, grad), 20, lane=lane)
            late = [row for row in rows[10:] if row["lane"] == lane]
            suffix = f"{lane}{'_grad' if grad else ''}"
            figures[f"eager_ns_per_op_{suffix}"] = eager_ms * 1e6 / 400
            if late:
                host_us = statistics.median(row["host_us"] - row["host_wait_us"] for row in late)
                figures[f"host_ns_per_op_{suffix}"] = host_us * 1e3 / 400
    return figures


def fetch_cost():
    """Microseconds of one operator and the fetch of its result, eager and covered."""

    def make_step():
        x = torch.ones(1)  # a 0-dim tensor of the CPU would be a host number, and nothing would be fetched

        def step(_):
            for _ in range(50):
                (x * 2).item()

        return step

    eager_ms, coexec_ms, _ = _pair(make_step, 20)
    return {"fetch_eager_us": eager_ms * 1e3 / 50, "fetch_coexec_us": coexec_ms * 1e3 / 50}


def _training_step(decorate):
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU())]
    net = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    inputs, targets = torch.randn(8, 32), torch.randn(8, 32)

    def step(i):
        optimizer.zero_grad()
        loss = F.mse_loss(decorate(net(inputs)), targets)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _recorded_against_eager(make_step):
    """One sample: (milliseconds of a recorded step, of an eager one), or None if the steps were no recordings.

    The steps are the second and the third: the first creates optimizer state and meets every operator for the first
    time, the fourth runs on the plan.
    """
    _runtime.core().reset()
    outrider.clear()
    step, wrapped = make_step(), outrider.coexec(make_step())
    _block_ms(step, 5)
    before_ms = _block_ms(step, 5)
    wrapped(0)
    outrider.flush()
    start = time.perf_counter()
    wrapped(1)
    wrapped(2)
    outrider.flush()
    recorded_ms = (time.perf_counter() - start) * 1e3 / 2
    recorded = all(row["recorded"] for row in outrider.report()[1:3])
    _runtime.core().leave()
    return (recorded_ms, (before_ms + _block_ms(step, 5)) / 2) if recorded else None


def recording_ratio(programs):
    """Time of a recorded step against an eager one, for each program (name -> function that makes a step)."""
    figures = {}
    for name, make_step in programs.items():
        samples = [_recorded_against_eager(make_step) for _ in range(_RECORDINGS)]
        samples = [sample for sample in samples if sample is not None]
        recorded, eager = zip(*samples, strict=True) if samples else ((), ())
        figures[f"recording_ratio_{name}"] = measure.ratio_with_interval(recorded, eager) if samples else None
        figures[f"recording_samples_{name}"] = len(samples)
    return figures


def never_stable_ratio():
    """A program that takes a new path in every step, against eager."""
    generator = random.Random(0)
    operations = [torch.sin, torch.cos, torch.tanh, torch.abs, torch.neg, torch.relu, torch.sigmoid, torch.square]

    def decorate(x):
        for _ in range(12):
            x = generator.choice(operations)(x)
        return x

    eager_ms, coexec_ms, rows = _pair(functools.partial(_training_step, decorate), 20)
    covered = sum(row["covered_ops"] for row in rows) / max(1, sum(row["device_ops"] for row in rows))
    return {"never_stable_ratio": coexec_ms / eager_ms, "never_stable_covered_share": covered}


def measure_all(programs):
    """All small figures, name -> value. `programs`: name -> function that makes a step, for the cost of recording."""
    recording = recording_ratio({"mlp": functools.partial(_training_step, lambda x: x)} | programs)
    return operator_cost() | fetch_cost() | recording | never_stable_ratio()
