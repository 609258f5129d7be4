"""What a program changes behind an event, without one, and a divergence after it: the replay must not see it."""

import ctypes
import threading

import equality
import numpy as np
import pytest
import torch
from scenarios import Bench
from torch import nn

pytestmark = pytest.mark.timeout(240)

STEPS = 13
ODD_STEP = 9  # the program is covered by then
EVENTS_MAX = 100


def square_net():
    """6 -> 6, so that square inputs may be turned around."""
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


def descend(bench, loss):
    """One step of the optimizer on this loss; returns its value."""
    bench.optimizer.zero_grad()
    loss.backward()
    bench.optimizer.step()
    return loss.detach()


def at_every_event(make_step, least_events):
    """Runs the program eagerly, covered, and with a divergence forced at each event of the odd step."""

    def build():
        return Bench(make_step, net=square_net)

    eager = equality.run_eager(build, STEPS)
    plain = equality.run_coexec(build, STEPS)
    assert equality.lanes_used(plain.rows[:ODD_STEP], ODD_STEP - 3) == {"outer": 3}, equality.why_not(plain.rows, 3)
    equality.assert_equal(eager, plain)
    wrong, event = {}, 0
    while event < EVENTS_MAX:
        twin = equality.run_coexec(build, STEPS, force_divergence=(ODD_STEP, event))
        if found := equality.differences(eager, twin):
            wrong[event] = found[:2]
        if not any(item["code"] == "DIV_FORCED" for item in twin.rows[ODD_STEP]["divergences"]):
            break
        event += 1
    assert not wrong, f"{len(wrong)} events went wrong: {str(wrong)[:500]}"
    assert event >= least_events, event


def floats(tensor):
    """The tensor's memory, by its address."""
    pointer = (ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr())
    return np.ctypeslib.as_array(pointer)


def through_pointer(tensor):
    """Bytes written behind torch's back."""
    floats(tensor)[:] *= 0.5


def through_new_data(tensor):
    """`.data =` with a tensor that no operator of the step made."""
    tensor.data = torch.full((6, 6), 0.125)


def in_thread(write):
    """The same by another thread, which is waited for."""

    def run(tensor):
        thread = threading.Thread(target=write, args=(tensor,))
        thread.start()
        thread.join()

    return run


def operator(tensor):
    """An operator, which in another thread is no event."""
    with torch.no_grad():
        tensor.mul_(0.5)


WRITES = {
    "pointer": through_pointer,
    "data": through_new_data,
    "thread": in_thread(through_pointer),
    "thread_operator": in_thread(operator),
}


@pytest.mark.parametrize("target", ["weight", "frozen", "buffer", "input", "value"])
@pytest.mark.parametrize("write", WRITES)
def test_write_behind_a_launched_part(write, target):
    """A value was read before the write, so all is launched, and history forbids the commit."""

    def make(bench):
        frozen, buffer = torch.randn(6, 6), torch.zeros(6, 6)
        bench.extra |= {"frozen": frozen, "buffer": buffer}

        def step(i):
            x = torch.randn(6, 6)
            with torch.no_grad():
                buffer.add_(frozen)
            value = torch.tanh(x @ frozen)
            hidden = bench.net(x) + value + x @ buffer
            bench.log.append(hidden.detach().sum().item())
            if i == ODD_STEP:
                targets = {"frozen": frozen, "buffer": buffer, "input": x, "value": value}
                WRITES[write](targets.get(target, bench.weight()))
            loss = (bench.net(hidden.detach()) @ frozen + x @ buffer + hidden).square().mean()
            return descend(bench, loss)

        return step

    at_every_event(make, 10)


def test_write_where_all_is_launched_and_a_commit_is_allowed():
    """Nobody holds history, so the write commits what a read has launched: an addition is not repeated on new bytes."""

    def make(bench):
        frozen, buffer = torch.randn(6, 6), torch.zeros(6, 6)
        bench.extra |= {"frozen": frozen, "buffer": buffer}

        def step(i):
            with torch.no_grad():
                buffer.add_(frozen)
            bench.log.append(bench.weight().sum().item())
            if i == ODD_STEP:
                through_pointer(frozen)
            loss = (bench.net(torch.ones(6, 6)) + buffer).square().mean()
            with torch.no_grad():
                buffer.mul_(0.5)
            return descend(bench, loss)

        return step

    at_every_event(make, 10)


def test_written_between_two_uses_of_a_pointer():
    """Who has the address of an input may write at any time; what comes later does not run behind such a write."""

    def make(bench):
        def step(i):
            x = torch.randn(6, 6)
            with torch.no_grad():
                first = x.sin().sum()
            bench.log.append(first.item())
            memory = floats(x) if i == ODD_STEP else None
            loss = (bench.net(torch.ones(6, 6)) + x.cos()).square().mean()
            if i == ODD_STEP:
                memory[:] = 7.0
            return descend(bench, loss)

        return step

    at_every_event(make, 10)


def test_number_changed_behind_its_use():
    """A 0-dim tensor that enters by value, changed in place and through numpy."""

    def make(bench):
        rate, decay = torch.tensor(0.5), torch.tensor(0.9)
        bench.extra |= {"rate": rate, "decay": decay}

        def step(i):
            x = torch.randn(6, 6)
            hidden = bench.net(x)
            with torch.no_grad():
                scaled = x * rate + x.sin() * decay
            rate.mul_(0.9)
            decay.numpy()[...] *= 0.9
            loss = (hidden + scaled).square().mean()
            return descend(bench, loss)

        return step

    at_every_event(make, 10)


RESHAPES = {
    "t_": lambda x: x.t_(),
    "swapaxes_": lambda x: x.swapaxes_(0, 1),
    "as_strided_": lambda x: x.as_strided_((6, 6), (1, 6)),
    "set_": lambda x: x.set_(torch.ones(6, 6)),
    "requires_grad_": lambda x: x.requires_grad_(),
}


@pytest.mark.parametrize("kind", ["input", "foreign", "state"])
@pytest.mark.parametrize("change", RESHAPES)
def test_input_changed_in_place_between_two_uses(change, kind):
    """The second use is of another tensor, and a replay of the first one of the tensor as it was."""
    if (change, kind) == ("requires_grad_", "state"):
        pytest.skip("the tensor would keep it, and be a parameter from then on")

    def make(bench):
        state, frozen = torch.randn(6, 6), torch.randn(6, 6)

        def step(i):
            x = {
                "input": lambda: torch.randn(6, 6),
                "foreign": lambda: torch.from_numpy(np.random.randn(6, 6).astype(np.float32)),
                "state": lambda: state,
            }[kind]()
            before = x @ frozen
            if i == ODD_STEP:
                RESHAPES[change](x)
            loss = (bench.net(torch.ones(6, 6)) + before + x @ frozen).square().mean()
            found = descend(bench, loss)
            bench.extra[f"grad.{i}"] = 0 if x.grad is None else x.grad.clone()
            return found

        return step

    at_every_event(make, 2)


@pytest.mark.parametrize("change", RESHAPES)
def test_input_changed_in_place_in_each_step(change):
    """Such a program is never wrong either; it may stay in the inner lane."""

    def make(bench):
        state, frozen = torch.randn(6, 6), torch.randn(6, 6)

        def step(i):
            x = torch.randn(6, 6) if change == "requires_grad_" else state
            before = x @ frozen
            RESHAPES[change](x)
            loss = (bench.net(torch.ones(6, 6)) + before + x @ frozen).square().mean()
            found = descend(bench, loss)
            bench.extra[f"grad.{i}"] = 0 if x.grad is None else x.grad.clone()
            return found

        return step

    def build():
        return Bench(make, net=square_net)

    eager = equality.run_eager(build, STEPS)
    assert len(eager.losses) == STEPS, eager.error
    equality.assert_equal(eager, equality.run_coexec(build, STEPS))


def no_gradient(bench):
    """Gradients thrown away without an operator."""
    for parameter in bench.net.parameters():
        parameter.grad = None


def another_gradient(bench):
    """A gradient replaced by a tensor of the program's own."""
    bench.weight().grad = torch.full((6, 6), 0.125)


@pytest.mark.parametrize("always", [True, False], ids=["each_step", "one_step"])
@pytest.mark.parametrize("change", [no_gradient, another_gradient])
def test_gradient_replaced_between_two_backward_passes(change, always):
    """The history of the second loss is alive, so the first backward pass is not committed when `.grad` is set."""

    def make(bench):
        other = nn.Parameter(torch.randn(6, 6))
        bench.extra["other"] = other

        def step(i):
            x = torch.randn(6, 6)
            bench.optimizer.zero_grad()
            first = bench.net(x).square().mean()
            second = (x @ other).square().mean() + bench.net(x * 2).sin().mean()
            first.backward()
            if always or i == ODD_STEP:
                change(bench)
            between = (x * 3).sum()
            second.backward()
            bench.optimizer.step()
            bench.extra[f"grad.{i}"] = bench.weight().grad.clone()
            other.grad = None
            return first.detach() + second.detach() + between

        return step

    at_every_event(make, 10)
