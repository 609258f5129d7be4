"""Custom functions, recomputation, and everything that looks at, reuses or extends the autograd graph."""

import pytest
import torch
import torch.nn.functional as F
from scenarios import MODES, ODD_STEP, check
from torch.utils.checkpoint import checkpoint

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]


def odd(i):
    """The steps in which a difficulty is there; it comes late and goes away again."""
    return ODD_STEP <= i < ODD_STEP + 3


class ScaledTanh(torch.autograd.Function):
    """tanh with a Python backward that holds state."""

    calls = 0

    @staticmethod
    def forward(ctx, x, scale):
        """Returns tanh(scale * x)."""
        y = torch.tanh(scale * x)
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx, gradient):
        """Counts itself in Python."""
        ScaledTanh.calls += 1
        (y,) = ctx.saved_tensors
        return gradient * ctx.scale * (1 - y * y), None


@pytest.mark.parametrize("always", [True, False], ids=["each_step", "late"])
def test_custom_function(mode, always):
    """A Python autograd.Function with side effects."""

    def make(bench):
        ScaledTanh.calls = 0

        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            hidden = bench.net[0](features)
            if always or odd(i):
                hidden = ScaledTanh.apply(hidden, 1.5)
            loss = F.cross_entropy(bench.net[1:](hidden), labels)
            loss.backward()
            bench.optimizer.step()
            bench.log.append(ScaledTanh.calls)
            return loss

        return step

    check(make, mode)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_activation_checkpointing(mode, reentrant):
    """The recomputed dropout draws the same numbers."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            features.requires_grad_()
            logits = checkpoint(bench.net, features, use_reentrant=reentrant)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_gradient_penalty(mode):
    """Double backward: the gradient's norm is part of the loss."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            features.requires_grad_()
            loss = F.cross_entropy(bench.net(features), labels)
            (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
            loss = loss + 0.1 * gradient.square().sum()
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_backward_with_create_graph_appears_late(mode):
    """A graph of gradients is wanted in some steps only."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            if odd(i):
                gradients = torch.autograd.grad(loss, list(bench.net.parameters()), create_graph=True)
                loss = loss + sum(gradient.square().sum() for gradient in gradients)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


@torch.jit.script
def backward_in_cpp(loss: torch.Tensor):
    """TorchScript calls the default engine as C++ extensions do, behind the shims."""
    loss.backward()


@pytest.mark.parametrize("always", [True, False], ids=["each_step", "late"])
def test_backward_called_by_cpp_code(mode, always):
    """The backward pass does not come by the Python entry of the engine; it is one event all the same."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            if always or odd(i):
                backward_in_cpp(loss)
            else:
                loss.backward()
            bench.optimizer.step()
            return loss

        return step

    twin = check(make, mode)
    if always and mode != "inner":
        assert twin.rows[-1]["lane"] == "outer", twin.rows[-1]["note"]


@pytest.mark.parametrize("always", [True, False], ids=["each_step", "late"])
def test_retain_graph(mode, always):
    """One graph is walked twice."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            if always or odd(i):
                loss.backward(retain_graph=True)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_second_backward_raises_as_eager(mode):
    """The graph has been freed: eager's own error, in the same step or a later one."""

    def make(bench):
        kept = []

        def step(i):
            if i == ODD_STEP:
                kept[-1].backward()
            bench.optimizer.zero_grad()
            loss = bench.loss()
            loss.backward()
            bench.optimizer.step()
            kept.append(loss)
            if i == ODD_STEP + 2:
                loss.backward()
            return loss

        return step

    twin = check(make, mode, resume=True)
    assert "backward through the graph a second time" in twin.losses[ODD_STEP]
    assert "backward through the graph a second time" in twin.losses[ODD_STEP + 2]


def test_second_backward_raises_each_step(mode):
    """An error that the program expects is no event that could be answered without raising it."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            loss.backward()
            with pytest.raises(RuntimeError, match="a second time"):
                loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_in_place_write_before_backward_raises_as_eager(mode):
    """A saved tensor was changed: the version check must still bite."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            hidden = torch.tanh(bench.net[0](features))
            loss = F.cross_entropy(bench.net[4](hidden), labels)
            if odd(i):
                hidden.detach().mul_(2.0)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    twin = check(make, mode, resume=True)
    assert "modified by an inplace operation" in twin.losses[ODD_STEP]


def test_backward_with_inputs(mode):
    """Only some leaves get a gradient."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            loss.backward(inputs=[bench.weight()] if odd(i) else None)
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_backward_from_several_roots(mode):
    """Two roots with gradients of their own."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            logits = bench.net(features)
            loss = F.cross_entropy(logits, labels)
            torch.autograd.backward([loss, logits], [torch.tensor(0.5), torch.full_like(logits, 0.01)])
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_frozen_parameters_and_requires_grad_flips(mode):
    """Leaf flags change between steps."""

    def make(bench):
        def step(i):
            bench.weight().requires_grad_(not odd(i))
            return bench.train()

        return step

    check(make, mode)


def test_saved_tensor_hooks(mode):
    """Saved tensors are packed by user code."""

    def make(bench):
        def step(i):
            if not odd(i):
                return bench.train()
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
                return bench.train()

        return step

    check(make, mode)


def test_anomaly_mode(mode):
    """Anomaly detection is switched on for some steps."""

    def make(bench):
        def step(i):
            with torch.autograd.set_detect_anomaly(odd(i)):
                return bench.train()

        return step

    check(make, mode)


def test_forward_mode_and_functorch(mode):
    """Dual numbers and torch.func transforms inside a step."""

    def make(bench):
        def step(i):
            if odd(i):
                gradient = torch.func.grad(lambda x: torch.tanh(x).sum())(torch.ones(3))
                rows = torch.func.vmap(lambda row: row.square().sum())(bench.weight().detach())
                _, tangent = torch.func.jvp(torch.sin, (torch.ones(3),), (torch.ones(3),))
                bench.extra[f"functorch.{i}"] = torch.cat((gradient, rows, tangent))
            return bench.train()

        return step

    check(make, mode)


def test_no_grad_and_inference_mode_inside(mode):
    """An evaluation in mid-step, in both grad-free modes."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            features, _ = bench.batch()
            bench.net.eval()
            with torch.no_grad() if i % 2 else torch.inference_mode():
                bench.log.append(bench.net(features).argmax(1).tolist())
            bench.net.train()
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_detach_and_stop_gradient(mode):
    """A graph is cut with detach() and detach_()."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            hidden = bench.net[0](features)
            hidden = hidden.detach_() if odd(i) else hidden
            loss = F.cross_entropy(bench.net[1:](hidden), labels)
            loss = loss + loss.detach() * 0.1
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)
