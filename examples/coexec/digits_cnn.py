"""A small residual CNN with BatchNorm on handwritten digits.

Python features a tracer would trip over: a log line that reads the loss each step, numpy
augmentation into one reused buffer, and a schedule object that mutates a module's attribute.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import digits
from .program import Program, make_optimizer


class DropBlock(nn.Module):
    """Drops square blocks of a feature map; a schedule changes `keep` while training runs."""

    def __init__(self, block=3):
        super().__init__()
        self.block = block
        self.keep = 1.0

    def forward(self, x):
        """x: [batch, channels, height, width], returned with blocks zeroed and rescaled."""
        if not self.training or self.keep >= 1.0:
            return x
        rate = (1.0 - self.keep) / self.block**2
        seeds = (torch.rand_like(x) < rate).to(x.dtype)
        kept = 1.0 - F.max_pool2d(seeds, self.block, stride=1, padding=self.block // 2)
        return x * kept * (kept.numel() / kept.sum())


class DigitsNet(nn.Module):
    """Two convolution stages, one residual block, a linear head: [n, 1, 8, 8] -> [n, 10]."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down_norm = nn.BatchNorm2d(2 * width)
        self.body = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.body_norm = nn.BatchNorm2d(2 * width)
        self.drop_block = DropBlock()
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        """x: [n, 1, 8, 8] float32; returns logits [n, 10]."""
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.down_norm(self.down(x)))
        x = x + self.drop_block(F.relu(self.body_norm(self.body(x))))
        return self.head(x.mean((2, 3)))


class KeepSchedule:
    """Counts steps in Python and lowers `keep` at each milestone."""

    def __init__(self, drop_block, milestones):
        self.drop_block = drop_block
        self.milestones = milestones
        self.steps_seen = 0

    def advance(self):
        """Called once a step, before the forward pass."""
        passed = sum(self.steps_seen >= milestone for milestone in self.milestones)
        self.drop_block.keep = 1.0 - 0.05 * passed
        self.steps_seen += 1


class DigitsCnn(Program):
    """Trains DigitsNet; every batch is written into the same numpy buffer."""

    def __init__(self, seed, data, optimizer, batch, log_every, milestones, device):
        super().__init__(seed)
        self.images, self.labels = data
        self.pixels = np.zeros((batch, 1, 8, 8), dtype=np.float32)
        self.device = device
        self.log_every = log_every
        self.net = DigitsNet().to(device)
        self.optimizer = make_optimizer(optimizer, self.net.parameters())
        self.schedule = KeepSchedule(self.net.drop_block, milestones)
        self.models = {"net": self.net}
        self.optimizers = {"net": self.optimizer}

    def fill_buffer(self, rows):
        """Writes the augmented images of `rows` into the reused buffer: a shift, then noise."""
        for slot, row in enumerate(rows):
            shift = np.random.randint(-1, 2, size=2)
            self.pixels[slot, 0] = np.roll(self.images[row], tuple(shift), axis=(0, 1))
        self.pixels += np.random.normal(0.0, 0.02, self.pixels.shape).astype(np.float32)

    def step(self, i):
        """One training step; returns the loss as a float when it is a logging step."""
        self.schedule.advance()
        rows = np.random.randint(0, len(self.images), size=len(self.pixels))
        self.fill_buffer(rows)
        pixels = torch.from_numpy(self.pixels).to(self.device)
        labels = torch.from_numpy(self.labels[rows]).to(self.device)

        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(pixels), labels)
        loss.backward()
        self.optimizer.step()

        self.pixels.fill(np.nan)  # the batch is used up: whoever reads it from now on is wrong
        if i % self.log_every == 0:
            self.log.append(loss.item())
            return self.log[-1]
        return loss


def build(seed=0, optimizer="sgd", batch=16, log_every=1, milestones=(8, 64, 128), device="cpu"):
    """Builds the program; `optimizer` is one of make_optimizer's names."""
    return DigitsCnn(seed, digits.load(), optimizer, batch, log_every, milestones, device)
