"""A small GPT with dropout on the standard library's source text.

Python decides each step how long the sequences are and which layers are skipped.
"""

import random

import torch
import torch.nn.functional as F

from . import stdlib_text
from .gpt import Gpt
from .program import Program, make_optimizer


class TextGpt(Program):
    """Next-byte training; every step draws a length and a path through the layers."""

    def __init__(self, seed, optimizer, batch, lengths, log_every, device, **model):
        super().__init__(seed)
        self.batch = batch
        self.lengths = lengths
        self.log_every = log_every
        self.device = device
        self.net = Gpt(vocabulary=stdlib_text.VOCABULARY, context=lengths[1], **model).to(device)
        self.optimizer = make_optimizer(optimizer, self.net.parameters())
        self.models = {"net": self.net}
        self.optimizers = {"net": self.optimizer}

    def step(self, i):
        """One training step; returns the loss as a float when it is a logging step."""
        length = random.randint(*self.lengths)
        windows = torch.from_numpy(stdlib_text.random_windows(self.batch, length)).to(self.device)
        self.optimizer.zero_grad()
        logits = self.net(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        if i % self.log_every == 0:
            self.log.append(loss.item())
            return self.log[-1]
        return loss


def build(
    seed=0,
    optimizer="adamw",
    batch=2,
    lengths=(32, 512),
    width=64,
    layers=3,
    heads=4,
    dropout=0.1,
    layer_drop=0.2,
    log_every=1,
    device="cpu",
):
    """Builds the program; `lengths` is an inclusive range in tokens, drawn uniformly."""
    model = {"width": width, "layers": layers, "heads": heads, "dropout": dropout, "layer_drop": layer_drop}
    return TextGpt(seed, optimizer, batch, lengths, log_every, device, **model)
