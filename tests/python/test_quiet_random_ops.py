"""Operators that may draw random numbers, called so that they draw none: they are covered like any other."""

import functools

import equality
import pytest
import torch
import torch.nn.functional as F
from coexec.program import Program
from torch import nn

STEPS = 30


class QuietProgram(Program):
    """A training step around `mix(x, i)`, which may call random operators; real draws stand before and behind it."""

    def __init__(self, mix):
        super().__init__(0)
        self.mix = mix
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        self.models = {"first": self.first, "last": self.last}
        parameters = [*self.first.parameters(), *self.last.parameters()]
        self.optimizers = {"sgd": torch.optim.SGD(parameters, lr=0.01)}

    def step(self, i):
        """One step; returns the loss."""
        self.optimizers["sgd"].zero_grad()
        x = torch.randn(2, 8, 16)
        loss = self.last(self.mix(self.first(x), i)).square().mean()
        loss.backward()
        self.optimizers["sgd"].step()
        return loss

    def extras(self):
        """The next number of the generator, so that a draw too many or too few shows."""
        return {"next draw": torch.rand(1).item()}


def heads(x):
    return x.view(2, 8, 2, 8).transpose(1, 2)


def attention(x, i, rate=lambda i: 0.0):
    """Self-attention with the dropout rate of step `i`."""
    q = heads(x)
    mixed = F.scaled_dot_product_attention(q, q, q, dropout_p=rate(i), is_causal=True)
    return mixed.transpose(1, 2).reshape(2, 8, 16)


def attention_kernel(x, i):
    """The kernel itself, its probability given as a number."""
    q = heads(x)
    mixed, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q, 0.0, True)
    return mixed.transpose(1, 2).reshape(2, 8, 16)


def evaluation(x, i):
    """Operators with a training switch, switched off."""
    x, _ = torch.native_dropout(x, 0.5, False)
    return F.rrelu(F.dropout(x, 0.5, training=False), training=False)


# Never random, and in the outer lane once recorded: name -> (mix, host operations in the inner lane). One is the draw
# of the input, the other the bare allocation of the noise of rrelu.
QUIET = {"attention": (attention, 1), "attention_kernel": (attention_kernel, 1), "evaluation": (evaluation, 2)}

# Quiet in some steps and drawing in others, with the numbers of eager in either.
MIXED = {
    "attention_now_and_then": functools.partial(attention, rate=lambda i: 0.5 if i % 3 == 2 else 0.0),
    "attention_dropout_comes_late": functools.partial(attention, rate=lambda i: 0.5 if i >= 20 else 0.0),
    "attention_dropout_ends": functools.partial(attention, rate=lambda i: 0.0 if i >= 20 else 0.5),
    "negative_zero": functools.partial(attention, rate=lambda i: -0.0),
    "native_dropout_now_and_then": lambda x, i: torch.native_dropout(x, 0.5, i % 3 == 2)[0],
    "rrelu_now_and_then": lambda x, i: F.rrelu(x, training=i % 3 == 2),
}


@pytest.mark.parametrize("lane", equality.LANES)
@pytest.mark.parametrize("name", QUIET)
def test_covered_and_equal(name, lane):
    mix, host_ops = QUIET[name]
    build = functools.partial(QuietProgram, mix)
    twin = equality.run_coexec(build, STEPS, lane=lane)
    equality.assert_equal(equality.run_eager(build, STEPS), twin)
    late = twin.rows[10:]
    assert all(row["lane"] == lane for row in late), equality.why_not(twin.rows, 10)
    assert equality.covered_share(twin.rows, 10) == 1
    assert all(row["host_ops"] == (host_ops if lane == "inner" else 0) for row in late)


@pytest.mark.parametrize("lane", ["auto", *equality.LANES])
@pytest.mark.parametrize("name", MIXED)
def test_equal_when_it_draws_in_some_steps(name, lane):
    build = functools.partial(QuietProgram, MIXED[name])
    equality.assert_equal(equality.run_eager(build, STEPS), equality.run_coexec(build, STEPS, lane=lane))
