"""A covered training step needs no more memory than an eager one: activations go while backward runs."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Large blocks come from the system and go back to it at once, so that the peak of the process is that of its tensors.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

SCRIPT = """
import resource, sys
import torch
import outrider
from torch import nn

lane, fetch = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
layers = [layer for _ in range(24) for layer in (nn.Linear(256, 256), nn.GELU())]
net = nn.Sequential(*layers)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
inputs = torch.randn(1024, 256)


def train():
    optimizer.zero_grad()
    loss = net(inputs).square().mean()
    if fetch == "middle":
        loss.item()
    loss.backward()
    optimizer.step()
    return loss.item() if fetch == "end" else None


def kilobytes(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1])


step = train if lane == "eager" else outrider.coexec(train)
outrider.options(lane="auto" if lane == "eager" else lane)
before = kilobytes("VmRSS:")
for _ in range(6):
    step()
outrider.flush()
lanes = [row["lane"] for row in outrider.report()]
assert lane == "eager" or lanes[-2:] == [lane] * 2, lanes
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_kib(lane, fetch):
    """Peak memory of a few steps in a process of their own, above what it had before them."""
    environment = os.environ | MALLOC | {"PYTHONPATH": str(ROOT / "python")}
    command = [sys.executable, "-c", SCRIPT, lane, fetch]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout)


@pytest.mark.parametrize("fetch", ["end", "middle"])
def test_peak_is_that_of_eager(fetch):
    eager = peak_kib("eager", fetch)
    assert eager > 24 * 2 * 1024 * 256 * 4 / 1024, "all activations live at once, so the measurement sees them"
    # Recorded steps and the run-ahead hold some buffers more; a second set of activations would double the peak.
    assert peak_kib("outer", fetch) < 1.15 * eager
