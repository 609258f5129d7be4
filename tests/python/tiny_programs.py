"""Two tiny programs, small enough to be run once for every event of a step."""

import numpy as np
import torch
import torch.nn.functional as F
from coexec.gpt import Gpt
from coexec.program import Program, make_optimizer
from torch import nn

FETCHES = ("none", "middle", "end")


class TinyProgram(Program):
    """An ordinary training step; `fetch` says where the loss is read by Python.

    "middle" reads it between forward and backward, so that a first part of the step has been
    launched, with its effects, before the rest is validated.
    """

    def __init__(self, fetch, device):
        super().__init__(0)
        assert fetch in FETCHES
        self.fetch = fetch
        self.device = device

    def forward_loss(self):
        """Returns the loss of a new batch."""
        raise NotImplementedError

    def step(self, i):
        """One training step; returns the loss tensor."""
        self.optimizer.zero_grad()
        loss = self.forward_loss()
        if self.fetch == "middle":
            self.log.append(loss.item())
        loss.backward()
        self.optimizer.step()
        self.log.append(self.optimizer.param_groups[0]["params"][0]._version)
        if self.fetch == "end":
            self.log.append(loss.item())
        return loss


class TinyGpt(TinyProgram):
    """One block of width 16 with dropout, AdamW."""

    def __init__(self, fetch="end", device="cpu"):
        super().__init__(fetch, device)
        self.net = Gpt(vocabulary=16, width=16, layers=1, heads=2, context=8, dropout=0.2).to(device)
        self.optimizer = make_optimizer("adamw_foreach", self.net.parameters())
        self.models, self.optimizers = {"net": self.net}, {"net": self.optimizer}

    def forward_loss(self):
        """Next-token loss on random tokens."""
        tokens = torch.from_numpy(np.random.randint(0, 16, (2, 9))).to(self.device)
        return F.cross_entropy(self.net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


class TinyCnn(TinyProgram):
    """Two convolutions with BatchNorm, SGD with momentum, gradients zeroed in place."""

    def __init__(self, fetch="end", device="cpu"):
        super().__init__(fetch, device)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 10),
        ).to(device)
        self.optimizer = make_optimizer("sgd", self.net.parameters())
        self.models, self.optimizers = {"net": self.net}, {"net": self.optimizer}

    def forward_loss(self):
        """Classification loss on random images."""
        images = torch.from_numpy(np.random.randn(4, 1, 8, 8).astype(np.float32)).to(self.device)
        labels = torch.from_numpy(np.random.randint(0, 10, 4)).to(self.device)
        return F.cross_entropy(self.net(images), labels)


TINY = {"gpt": TinyGpt, "cnn": TinyCnn}
