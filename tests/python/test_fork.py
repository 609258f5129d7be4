"""Forks in mid-step: the child gets finished values, the parent goes on and reports it, and no error is lost."""

import ctypes
import os
import sys

import equality
import pytest
import torch
from scenarios import MODES, ODD_STEP, STEPS, check

pytestmark = pytest.mark.timeout(120)

SLOW = {"runner_delay_us": 1000}

# The C function alone: none of Python's own fork handlers runs.
FORKS = {"os.fork": os.fork, "fork of the C library": ctypes.PyDLL(None).fork}


def in_child(fork, compute):
    """Runs `compute()` in a child; returns the float that it gave."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.write(writer, compute().hex().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return float.fromhex(text)


@pytest.mark.parametrize("place", ["before_backward", "after_backward", "after_step"])
@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("mode", MODES)
def test_child_sees_finished_values(mode, fork, place):
    """Whoever forks, and wherever: parameters, gradients and the loss have arrived in the child."""

    def make(bench):
        def total():
            tensors = [bench.seen, *bench.net.parameters()]
            tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
            return sum(float(tensor.detach().double().sum()) for tensor in tensors)

        def look(i, where, loss):
            bench.seen = loss
            if where == place and i == ODD_STEP:
                bench.log.append(in_child(FORKS[fork], total))

        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            look(i, "before_backward", loss)
            loss.backward()
            look(i, "after_backward", loss)
            bench.optimizer.step()
            look(i, "after_step", loss)
            del bench.seen
            return loss

        return step

    twin = check(make, mode, changes=SLOW)
    assert len(twin.state["log"]) == 1
    if mode in ("auto", "inner"):
        flushes = [row["flushes"].get("FLUSH_FORK", 0) for row in twin.rows]
        assert flushes == [1 if i == ODD_STEP else 0 for i in range(STEPS)]


@pytest.mark.parametrize("fork", FORKS)
def test_fork_does_not_swallow_an_error(fork, monkeypatch):
    """A kernel's error that is pending at the fork reaches the program at its next wait."""
    import outrider

    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    table = torch.ones(4, 3)

    def step(index):
        rows = table.index_select(0, index)
        child = FORKS[fork]()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return rows.sum().item()

    with equality.fresh_core(lane="inner", **SLOW):
        step = outrider.coexec(step)
        for _ in range(4):
            assert step(torch.tensor([0, 1])) == 6.0
        with pytest.raises(IndexError):
            step(torch.tensor([0, 9]))
        assert step(torch.tensor([2, 3])) == 6.0
    assert not unraisable
