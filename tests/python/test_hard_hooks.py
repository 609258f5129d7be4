"""Hooks on tensors, nodes, accumulated gradients and modules: user code inside backward."""

import pytest
import torch.nn.functional as F
from scenarios import MODES, ODD_STEP, check

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]


def odd(i):
    """The steps in which a difficulty is there; it comes late and goes away again."""
    return ODD_STEP <= i < ODD_STEP + 3


def with_hook(attach):
    """Makes a step for which `attach(bench, loss)` hooks something and returns a handle."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            hidden = bench.net[0](features)
            loss = F.cross_entropy(bench.net[1:](hidden), labels)
            handle = attach(bench, hidden, loss) if odd(i) else None
            loss.backward()
            if handle is not None:
                handle.remove()
            bench.optimizer.step()
            return loss

        return step

    return make


def scale_hook(bench, hidden, loss):
    """A hook on a parameter that changes its gradient."""
    return bench.weight().register_hook(lambda gradient: gradient * 0.5)


def log_hook(bench, hidden, loss):
    """A hook on an activation that reads its gradient."""
    return hidden.register_hook(lambda gradient: bench.log.append(gradient.sum().item()))


def node_hook(bench, hidden, loss):
    """A hook on an autograd node."""
    return loss.grad_fn.register_hook(lambda inputs, outputs: bench.log.append(len(inputs)))


def accumulate_hook(bench, hidden, loss):
    """A hook that runs after the gradient has been accumulated, and frees it."""

    def hook(parameter):
        bench.log.append(parameter.grad.abs().max().item())
        parameter.grad = None

    return bench.weight().register_post_accumulate_grad_hook(hook)


HOOKS = [scale_hook, log_hook, node_hook, accumulate_hook]


@pytest.mark.parametrize("attach", HOOKS)
def test_hook_appears_late(mode, attach):
    """The hook runs, with eager's values, from the step on in which it exists."""
    check(with_hook(attach), mode)


def test_hook_from_the_start_stays(mode):
    """A hook that was there before co-execution began."""

    def make(bench):
        bench.weight().register_hook(lambda gradient: bench.log.append(gradient.norm().item()))
        return lambda i: bench.train()

    assert len(check(make, mode).state["log"]) == 14


def test_hook_on_the_accumulating_node_stays(mode):
    """What data parallel training does; once it is there, no covered step may pass it by."""

    def make(bench):
        def hook(*gradients):
            bench.log.append(bench.weight().grad.norm().item())

        def step(i):
            loss = bench.train()
            if i == ODD_STEP:
                weight = bench.weight()
                bench.accumulator = weight.view_as(weight).grad_fn.next_functions[0][0]
                bench.accumulator.register_hook(hook)
            return loss

        return step

    assert len(check(make, mode, steps=20).state["log"]) == 20 - ODD_STEP - 1


def test_retain_grad(mode):
    """`.grad` of a non-leaf."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            hidden = bench.net[0](features)
            if odd(i):
                hidden.retain_grad()
            loss = F.cross_entropy(bench.net[1:](hidden), labels)
            loss.backward()
            bench.optimizer.step()
            if odd(i):
                bench.extra[f"hidden.{i}"] = hidden.grad
            return loss

        return step

    check(make, mode)


def test_module_hooks(mode):
    """Forward and full backward hooks of a module."""

    def make(bench):
        layer = bench.net[0]

        def step(i):
            if i == ODD_STEP:
                layer.register_forward_hook(lambda module, inputs, output: output * 2)
                layer.register_full_backward_hook(
                    lambda module, inputs, outputs: bench.log.append(outputs[0].sum().item())
                )
            return bench.train()

        return step

    assert check(make, mode).state["log"]
