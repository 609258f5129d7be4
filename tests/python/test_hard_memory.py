"""Writes that bypass the dispatcher, aliases kept for long, and tensors that change shape in place."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenarios import MODES, ODD_STEP, check

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.parametrize("mode", MODES),
    pytest.mark.parametrize("always", [True, False], ids=["each_step", "one_step"]),
]


def numpy_write(bench):
    """A raw write through numpy, invisible to torch."""
    bench.weight().detach().numpy()[0, :] = 0.25


def numpy_write_to_grad(bench):
    """Gradient clipping by hand, in numpy."""
    if bench.weight().grad is not None:
        gradient = bench.weight().grad.numpy()
        np.clip(gradient, -0.01, 0.01, out=gradient)


def data_assignment(bench):
    """`.data =` gives the parameter another storage."""
    bench.weight().data = bench.weight().data * 0.9


def data_assignment_of_plain_tensor(bench):
    """`.data =` with a tensor that was never computed on."""
    bench.weight().data = torch.full(bench.weight().shape, 0.125)


def write_through_row(bench):
    """A write through a view made on the spot."""
    bench.weight().data[0].fill_(0.5)


def write_through_flat_view(bench):
    """A write through a reshaped view, under no_grad."""
    with torch.no_grad():
        bench.weight().view(-1)[3:7].mul_(0.5)


def write_through_as_strided(bench):
    """A write through an overlapping-free as_strided view."""
    with torch.no_grad():
        bench.weight().as_strided((2, 3), (6, 2)).add_(0.01)


def copy_from_numpy(bench):
    """Values from a temporary numpy array that dies at once."""
    with torch.no_grad():
        bench.weight().copy_(torch.from_numpy(np.full(bench.weight().shape, 0.3, np.float32)))


def storage_write(bench):
    """A byte written straight into the storage."""
    bench.weight().untyped_storage()[2] = 7


def memoryview_write(bench):
    """A write through Python's buffer protocol."""
    memoryview(bench.weight().detach().numpy())[0, 0] = 0.75


def replace_grad(bench):
    """`.grad =` another tensor."""
    bench.weight().grad = torch.full_like(bench.weight(), 0.01)


def grad_to_none(bench):
    """A gradient is thrown away before the optimizer sees it."""
    bench.weight().grad = None


def data_dot_add(bench):
    """`.data.add_` does not bump the version."""
    bench.weight().data.add_(0.01)


def swap_module_parameter(bench):
    """Two tensors exchange their insides."""
    other = torch.nn.Parameter(bench.weight().detach().clone() + 0.1)
    bench.weight().data, other.data = other.data, bench.weight().data


WRITES = [
    numpy_write,
    numpy_write_to_grad,
    data_assignment,
    data_assignment_of_plain_tensor,
    write_through_row,
    write_through_flat_view,
    write_through_as_strided,
    copy_from_numpy,
    storage_write,
    memoryview_write,
    replace_grad,
    grad_to_none,
    data_dot_add,
    swap_module_parameter,
]


@pytest.mark.parametrize("place", ["before_forward", "after_backward", "after_step"])
@pytest.mark.parametrize("write", WRITES)
def test_write(mode, always, write, place):
    """The write lands exactly where the program put it."""

    def make(bench):
        def maybe(i, where):
            if where == place and (always or i == ODD_STEP):
                write(bench)

        def step(i):
            maybe(i, "before_forward")
            bench.optimizer.zero_grad()
            loss = bench.loss()
            loss.backward()
            maybe(i, "after_backward")
            bench.optimizer.step()
            maybe(i, "after_step")
            return loss

        return step

    check(make, mode)


def test_kept_numpy_alias(mode, always):
    """A numpy array over a parameter, made before co-execution, read and written in mid-step."""

    def make(bench):
        alias = bench.weight().detach().numpy()

        def step(i):
            loss = bench.train()
            if always or i == ODD_STEP:
                bench.log.append(float(alias.sum()))
                alias[0, 0] = 0.5
            return loss

        return step

    check(make, mode)


def test_kept_view(mode, always):
    """A view of a parameter, made before co-execution."""

    def make(bench):
        row = bench.weight().detach()[1]

        def step(i):
            loss = bench.train()
            if always or i == ODD_STEP:
                bench.log.append(float(row.sum()))
                row.mul_(0.5)
            return loss

        return step

    check(make, mode)


def test_feed_buffer_overwritten_after_the_step(mode, always):
    """The batch's numpy buffer is reused as soon as the step is over."""

    def make(bench):
        buffer = np.zeros((5, 6), np.float32)

        def step(i):
            buffer[...] = np.random.randn(5, 6)
            labels = torch.from_numpy(np.random.randint(0, 3, 5))
            bench.optimizer.zero_grad()
            loss = F.cross_entropy(bench.net(torch.from_numpy(buffer)), labels)
            loss.backward()
            bench.optimizer.step()
            if always or i == ODD_STEP:
                buffer.fill(np.nan)
            return loss

        return step

    check(make, mode)


def test_feed_buffer_overwritten_between_forward_and_backward(mode, always):
    """Eager's backward reads the overwritten batch, so co-execution has to as well."""

    def make(bench):
        buffer = np.zeros((5, 6), np.float32)

        def step(i):
            buffer[...] = np.random.randn(5, 6)
            labels = torch.from_numpy(np.random.randint(0, 3, 5))
            bench.optimizer.zero_grad()
            loss = F.cross_entropy(bench.net(torch.from_numpy(buffer)), labels)
            if always or i == ODD_STEP:
                buffer.fill(0.5)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


RESHAPES = {
    "t_": lambda x: x.t_(),
    "unsqueeze_": lambda x: x.unsqueeze_(0),
    "squeeze_": lambda x: x.unsqueeze(0).squeeze_(),
    "transpose_": lambda x: x.transpose_(0, 1),
    "resize_": lambda x: x.resize_(4, 3),
    "resize_larger": lambda x: x.resize_(9, 6).zero_(),
    "set_": lambda x: x.set_(x.untyped_storage(), 3, (2, 3), (3, 1)),
    "as_strided_": lambda x: x.as_strided_((3, 2), (2, 1)),
}


@pytest.mark.parametrize("reshape", RESHAPES)
def test_shape_changed_in_place(mode, always, reshape):
    """Metadata of an existing tensor changes under its name."""

    def make(bench):
        def step(i):
            loss = bench.train()
            if always or i == ODD_STEP:
                scratch = bench.weight().detach().clone() * 2
                RESHAPES[reshape](scratch)
                bench.log.append((tuple(scratch.shape), tuple(scratch.stride())))
                bench.extra[f"scratch.{i}"] = scratch * 3
            return loss

        return step

    check(make, mode)


def test_in_place_chain_on_views(mode, always):
    """Views of views, written in turn, read through the base."""

    def make(bench):
        state = torch.zeros(4, 6)
        bench.extra["state"] = state

        def step(i):
            features, _ = bench.batch()
            if always or i == ODD_STEP:
                state[1:3].t()[2:].add_(features[:2].t()[2:])
                state.view(-1)[::5].sub_(1.0)
                state.diagonal().mul_(0.5)
            loss = bench.train()
            return loss + state.sum().detach()

        return step

    check(make, mode)


def test_out_variants_and_copies_between_dtypes(mode, always):
    """`out=` arguments, dtype conversions and copy_ with broadcasting."""

    def make(bench):
        total = torch.zeros(3, dtype=torch.float64)
        bench.extra["total"] = total

        def step(i):
            features, _ = bench.batch()
            if always or i == ODD_STEP:
                half = features.to(torch.bfloat16)
                torch.add(total, features.double().sum(0)[:3], out=total)
                total.copy_(total.half())
                total[1:].copy_(half[0, 0])
            return bench.train()

        return step

    check(make, mode)
