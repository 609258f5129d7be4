"""Memory-efficient attention hands the generator's position back as numbers of the host: covered and captured."""

import functools

import equality
import pytest
import torch
from coexec.program import Program
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

STEPS = 40
DRAWS_FROM = 15  # the step from which on attention drops something, where it does


class Attending(Program):
    """A training step with attention in single precision; `dropout` is what it drops from some step on."""

    def __init__(self, dropout=0.0, frozen=False, device="cuda"):
        super().__init__(0)
        self.project = nn.Linear(64, 3 * 64).to(device)
        self.head = nn.Linear(64, 8).to(device)
        self.inputs = torch.linspace(-1, 1, 4 * 32 * 64).view(4, 32, 64).clone().to(device)
        self.dropout, self.frozen = dropout, frozen
        self.models = {"project": self.project, "head": self.head}
        parameters = [*self.project.parameters(), *self.head.parameters()]
        self.optimizers = {"sgd": torch.optim.SGD(parameters, lr=0.05)}

    def attend(self, dropout):
        query, key, value = self.project(self.inputs).view(4, 32, 3, 2, 32).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return out.transpose(1, 2).reshape(4, 32, 64)

    def step(self, i):
        """One step; returns the loss as a number."""
        self.optimizers["sgd"].zero_grad()
        dropout = self.dropout if i >= DRAWS_FROM else 0.0
        if self.frozen:
            with torch.no_grad():
                attended = self.attend(dropout)
        else:
            attended = self.attend(dropout)
        loss = self.head(attended).square().mean()
        loss.backward()
        self.optimizers["sgd"].step()
        self.log.append(loss.item())
        return self.log[-1]


@pytest.fixture(autouse=True)
def efficient_attention(repeatable_kernels):
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        yield


@pytest.mark.parametrize("lane", equality.LANES)
@pytest.mark.parametrize("frozen", [False, True])
def test_equal_and_covered(frozen, lane):
    build = functools.partial(Attending, frozen=frozen)
    twin = equality.run_coexec(build, STEPS, lane=lane)
    equality.assert_equal(equality.run_eager(build, STEPS), twin)
    late = twin.rows[20:]
    assert all(row["lane"] == lane and row["covered_ops"] == row["device_ops"] for row in late), equality.why_not(late)
    if lane == "outer":
        assert [row["tier"] for row in late] == ["T2"] * len(late), equality.why_not(late)


@pytest.mark.parametrize("lane", equality.LANES)
@pytest.mark.parametrize("frozen", [False, True])
def test_equal_when_it_begins_to_draw(frozen, lane):
    """From then on the position matters, and the operator runs on the host."""
    build = functools.partial(Attending, dropout=0.2, frozen=frozen)
    twin = equality.run_coexec(build, STEPS, lane=lane)
    equality.assert_equal(equality.run_eager(build, STEPS), twin)
