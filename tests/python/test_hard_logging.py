"""Values that are computed for the log in mid-step: their history is never used, and gone when they are read."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from scenarios import COVERED_STEP, MODES, ODD_STEP, check

pytestmark = pytest.mark.timeout(120)
every_mode = pytest.mark.parametrize("mode", MODES)
few_modes = pytest.mark.parametrize("mode", ["auto", "inner", "early"])

LOGS = {
    "sum": lambda h: h.sum().detach().item(),
    "mean_square": lambda h: (h * h).mean().item(),
    "through_a_view": lambda h: (h * 2).view(-1).square().sum().item(),
    "view_of_view": lambda h: (h * 2).t()[1:].flatten().abs().max().item(),
    "view_without_gradients": lambda h: torch.no_grad()(lambda x: x[0].sum() + x[:, 1].sum())(h * 3).item(),
    "list_of_tensors": lambda h: torch.cat([h * 2, h.exp(), h]).norm().item(),
    "split": lambda h: sum(part.square().sum().detach() for part in (h + 1).chunk(2)).item(),
    "in_place": lambda h: (h * 2).add_(1).clamp_(min=0).mean().item(),
    "einsum": lambda h: torch.einsum("ij,kj->ik", h, h.sin()).trace().item(),
    "numbers": lambda h: torch.stack([h.mean(), h.std(), h.abs().amax()]).tolist(),
    "argmax": lambda h: h.softmax(1).argmax(1).tolist(),
}


def forward(bench):
    """A hidden value with history, and the loss made of it."""
    features, labels = bench.batch()
    hidden = torch.tanh(bench.net[0](features))
    return hidden, lambda: F.cross_entropy(bench.net[1:](hidden), labels)


def assert_covered(twin, mode):
    """Late steps are covered in the lane of the mode, and nothing is computed twice."""
    late = twin.rows[COVERED_STEP:]
    wanted = "inner" if mode == "inner" else "outer"
    assert [row["lane"] for row in late] == [wanted] * len(late), [row["note"] for row in late]
    assert sum(row["replayed_events"] for row in late) == 0, [row["divergences"] for row in late]


@every_mode
@pytest.mark.parametrize("log", LOGS)
def test_logged_in_mid_step(mode, log):
    """What the outer lane's log keeps of such a value forbids no commit, so that no step is run twice."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            hidden, loss_of = forward(bench)
            bench.log.append(LOGS[log](hidden))
            loss = loss_of()
            bench.log.append(LOGS[log](hidden))
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    assert_covered(check(make, mode), mode)


@every_mode
def test_logged_behind_backward(mode):
    """The same of a loss and a hidden value that were consumed, and of the weights."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            hidden, loss_of = forward(bench)
            loss = loss_of()
            (loss * 2).backward()
            bench.log.append((loss + 1).detach().item() + hidden.exp().sum().item())
            bench.log.append((bench.weight() ** 2).sum().sqrt().item())
            bench.optimizer.step()
            return loss

        return step

    assert_covered(check(make, mode), mode)


@every_mode
def test_logged_through_numpy(mode):
    """The memory of a value in numpy's hands ends the log, and the covered step with it; the numbers are eager's."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            hidden, loss_of = forward(bench)
            bench.log.append(float((hidden + 1).detach().numpy().sum()))
            loss = loss_of()
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


class Holder:
    """Keeps a tensor in a cycle, which only the garbage collector takes apart."""

    def __init__(self, tensor):
        self.tensor, self.me = tensor, self


def in_variable(value):
    return lambda: value


def in_view(value):
    view = value.view(-1)[1:]
    del value
    return lambda: view


def as_base(value):
    """A view made without gradients; its base is the value."""
    with torch.no_grad():
        view = value[0]
    del value
    return lambda: view._base


def in_cycle(value):
    gone = weakref.ref(Holder(value))
    return lambda: gone().tensor


def by_weak_reference(value):
    """Another object holds the tensor; the weak reference is to the tensor."""
    box, reference = [value], weakref.ref(value)
    return lambda: box and reference()


def in_thread(value):
    """A thread that waits holds it."""
    go, box = threading.Event(), []

    def hold(tensor):
        go.wait()
        box.append(tensor)

    thread = threading.Thread(target=hold, args=(value,), daemon=True)
    thread.start()

    def get():
        go.set()
        thread.join()
        return box[0]

    return get


def in_attribute(value):
    """An attribute of a tensor that itself is dropped but for its storage's sake."""
    other = value.detach()
    other.kept = value
    return lambda: other.kept


def in_derived_value(value):
    """Only what was computed of it is held."""
    derived = value.sin()
    del value
    return lambda: derived


HOLDERS = [in_variable, in_view, as_base, in_cycle, by_weak_reference, in_thread, in_attribute, in_derived_value]


@few_modes
@pytest.mark.parametrize("always", [True, False], ids=["each_step", "one_step"])
@pytest.mark.parametrize("hold", HOLDERS)
def test_history_that_is_used_after_all(mode, hold, always):
    """A value that looks like those for the log, but that the program holds, and goes backward from in the end."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            hidden, loss_of = forward(bench)
            get = hold(hidden * 2)
            bench.log.append((hidden * 3).mean().item())
            loss = loss_of()
            loss.backward(retain_graph=True)
            bench.log.append((hidden * 3).mean().item())
            if always or i == ODD_STEP:
                get().square().mean().backward()
            get = None
            gc.collect(1)
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


@few_modes
@pytest.mark.parametrize("hold", HOLDERS)
def test_history_of_its_own_that_is_used_after_all(mode, hold):
    """The same in a covered step: the value shares no node with the loss, so nothing needs retain_graph."""

    def make(bench):
        other = torch.nn.Parameter(torch.randn(5, 6))
        bench.extra["other"] = other

        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            get = hold(other * features.sin())
            bench.log.append((other * 3).mean().item())
            loss = F.cross_entropy(bench.net(features), labels)
            loss.backward()
            bench.log.append((other * other).mean().item())
            if i == ODD_STEP:
                get().square().mean().backward()
                bench.extra["grad"] = other.grad.clone()
            get = None
            gc.collect(1)
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)
