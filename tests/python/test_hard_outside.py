"""Weights of a co-executed step that eager code outside of it uses too: what kernels do there ends with them, what
keeps a pointer goes on to be seen.
"""

import ctypes
import threading

import numpy as np
import outrider
import pytest
import torch
import torch.nn.functional as F
from outrider import _runtime

pytestmark = pytest.mark.timeout(120)

STEPS, WIDTH = 30, 384


class Training:
    """Two layers, plain SGD written in place behind the last read of a step, and not at once."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        self.weights = [
            torch.randn(WIDTH, WIDTH, generator=generator).div_(WIDTH**0.5).requires_grad_() for _ in range(2)
        ]
        self.x = torch.randn(WIDTH, WIDTH, generator=generator)

    def forward(self):
        hidden = torch.tanh(F.linear(self.x, self.weights[0]))
        return F.linear(hidden, self.weights[1]).square().mean()

    def step(self):
        loss = self.forward()
        value = loss.item()
        loss.backward()
        with torch.no_grad():
            for weight in self.weights:
                weight.sub_(weight.grad, alpha=0.1)
                weight.grad = None
        return value


def leave():
    """Ends co-execution on this thread until the next step."""
    outrider.flush()
    _runtime.core().leave()


def in_thread(call):
    """What `call` returns or raises in a thread of its own, once it has ended."""
    box = []

    def run():
        try:
            box.append(call())
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def evaluate(training):
    """A forward pass."""
    with torch.no_grad():
        return training.forward().item()


def gradients(training):
    """A backward pass whose gradients nobody keeps."""
    grads = torch.autograd.grad(training.forward(), training.weights)
    return [grad.sum().item() for grad in grads]


def decay(training):
    """A write."""
    with torch.no_grad():
        for weight in training.weights:
            weight.mul_(0.99)
        return training.weights[0].norm().item()


def views(training):
    """Views, and sums over them."""
    with torch.no_grad():
        return [training.weights[0][3:5].t().sum().item(), training.weights[1].view(-1)[7].item()]


USES = {use.__name__: use for use in (evaluate, gradients, decay, views)}


def run(wrap, use, where):
    """Losses of all steps, and what the use outside found behind each."""
    training = Training()
    step, found = wrap(training.step), []
    for _ in range(STEPS):
        found.append(step())
        if where == "left":
            leave()
        found.append(in_thread(lambda: use(training)) if where == "thread" else use(training))
    outrider.flush()
    return found


@pytest.mark.parametrize("where", ["left", "thread"])
@pytest.mark.parametrize("use", USES)
def test_eager_kernels_leave_weights_as_they_are(use, where):
    eager = run(lambda step: step, USES[use], where)
    outrider.clear()
    found = run(lambda step: outrider.coexec(step, name=f"outside-{use}-{where}"), USES[use], where)
    assert found == eager
    rows = outrider.report()[STEPS // 2 :]
    assert [row["lane"] for row in rows] == ["outer"] * len(rows), [row.get("note") for row in rows]
    assert max(row["copied_bytes"] for row in rows) == 0


_kept = []


@torch.library.custom_op("outside::keep", mutates_args=())
def keep_in_operator(tensor: torch.Tensor) -> torch.Tensor:
    """Takes a pointer where kernels run, which is below autograd."""
    _kept.append(np.from_dlpack(tensor))
    return tensor.clone()


def by_pointer(weight):
    """A bare pointer."""
    address = weight.data_ptr()
    return lambda: list((ctypes.c_float * 4).from_address(address))


def by_numpy(weight):
    """An array of numpy."""
    array = weight.detach().numpy()
    return lambda: array[0, :4].tolist()


def by_dlpack(weight):
    """An array over DLPack."""
    array = np.from_dlpack(weight.detach())
    return lambda: array[0, :4].tolist()


def by_dlpack_in_an_operator(weight):
    """The same, taken by an operator of one's own."""
    keep_in_operator(weight.detach())
    return lambda: _kept[-1][0, :4].tolist()


KEEPERS = {keep.__name__: keep for keep in (by_pointer, by_numpy, by_dlpack, by_dlpack_in_an_operator)}


def read_between(wrap, keep):
    """First values of a weight behind every step, read through what was kept when co-execution was left."""
    training = Training()
    step, found, read = wrap(training.step), [], None
    for i in range(STEPS):
        found.append(step())
        if i == STEPS // 3:
            leave()
            evaluate(training)
            read = keep(training.weights[0])
        if read is not None:
            found.append(read())
    outrider.flush()
    return found


@pytest.mark.parametrize("keep", KEEPERS)
def test_what_was_kept_outside_sees_every_step(keep):
    eager = read_between(lambda step: step, KEEPERS[keep])
    assert read_between(lambda step: outrider.coexec(step, name=f"kept-{keep}"), KEEPERS[keep]) == eager
