"""Functions typed into a notebook cell: there is no source file, and cells are run again."""

import pathlib
import sys

import pytest

pytestmark = pytest.mark.timeout(120)

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / "python")]

_SETUP = """
import torch, outrider
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
optimizer = torch.optim.AdamW(net.parameters())
def train():
    optimizer.zero_grad()
    loss = net(torch.randn(3, 4)).square().mean()
    loss.backward()
    optimizer.step()
    return loss
"""

_PLAIN = "losses = [train().item() for _ in range(20)]\n"

_DECORATED = """
@outrider.coexec
def step():
    return train()
losses = [step().item() for _ in range(10)]
"""

_DECORATED_AGAIN = """
@outrider.coexec
def step():
    return train()
losses += [step().item() for _ in range(10)]
outrider.flush()
"""

_BLOCK = """
losses = []
for _ in range(20):
    with outrider.step():
        losses.append(train().item())
outrider.flush()
"""


def run_cells(*cells):
    """Runs cells in one namespace as a notebook does; returns (losses, weight bytes)."""
    scope = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"<ipython-input-{number}>", "exec"), scope)
    net = scope["net"]
    return scope["losses"], [parameter.detach().numpy().tobytes() for parameter in net.parameters()]


def test_decorator_in_a_cell_that_is_run_again():
    """The second definition of the same function simply goes on."""
    expected = run_cells(_SETUP, _PLAIN)
    assert run_cells(_SETUP, _DECORATED, _DECORATED_AGAIN) == expected


def test_step_block_in_a_cell():
    """The block form needs no function at all."""
    expected = run_cells(_SETUP, _PLAIN)
    assert run_cells(_SETUP, _BLOCK) == expected
