"""The one shape all example programs share, so that an eager twin can be compared bit for bit."""

import random

import numpy as np
import torch

from .fingerprint import fingerprint


def seed_everything(seed):
    """Seeds every random generator a program may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Program:
    """A program under test: `step(i)` is the function that gets co-executed.

    models      name -> nn.Module, parameters and buffers belong to the state
    optimizers  name -> torch.optim.Optimizer
    log         every Python number the program read back from the device, in order

    `build` loads data and libraries before it constructs a program: a first import may draw
    from Python's global generator, and the seed must come after that.
    """

    def __init__(self, seed):
        seed_everything(seed)
        self.models = {}
        self.optimizers = {}
        self.log = []

    def step(self, i):
        """Runs step `i` (steps are called in order, from 0) and returns its loss."""
        raise NotImplementedError

    def extras(self):
        """Further state by name (tensors or plain values), for programs that have any."""
        return {}

    def state(self):
        """Returns everything the program left behind as name -> comparable value."""
        return fingerprint(self.models, self.optimizers, self.log, self.extras())


def make_optimizer(name, parameters, learning_rate=1e-3):
    """Builds an optimizer by the names used in tests and benchmarks."""
    parameters = list(parameters)
    makers = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=10 * learning_rate, momentum=0.9),
        "adam": lambda: torch.optim.Adam(parameters, lr=learning_rate),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=learning_rate),
        "adamw_fused": lambda: torch.optim.AdamW(parameters, lr=learning_rate, fused=True),
        "adamw_foreach": lambda: torch.optim.AdamW(parameters, lr=learning_rate, foreach=True),
    }
    return makers[name]()
