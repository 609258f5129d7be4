"""Hugging Face's GPT-2, not a line changed, with a tiny configuration on real text."""

import torch

from . import stdlib_text
from .program import Program, make_optimizer


class HfGpt2(Program):
    """Trains transformers' GPT2LMHeadModel with its own loss and its default dropout."""

    def __init__(self, seed, make_model, optimizer, batch, length, log_every, device):
        super().__init__(seed)
        self.batch = batch
        self.length = length
        self.log_every = log_every
        self.device = device
        self.net = make_model().to(device).train()
        self.optimizer = make_optimizer(optimizer, self.net.parameters())
        self.models = {"net": self.net}
        self.optimizers = {"net": self.optimizer}

    def step(self, i):
        """One training step; returns the loss as a float when it is a logging step."""
        windows = stdlib_text.random_windows(self.batch, self.length - 1)
        tokens = torch.from_numpy(windows).to(self.device)
        self.optimizer.zero_grad()
        loss = self.net(input_ids=tokens, labels=tokens).loss
        loss.backward()
        self.optimizer.step()
        if i % self.log_every == 0:
            self.log.append(loss.item())
            return self.log[-1]
        return loss


def build(seed=0, optimizer="adamw", batch=4, length=64, width=64, layers=2, log_every=1, device="cpu"):
    """Builds the program; `length` is in tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()  # a note on the default loss, once per model
    config = GPT2Config(
        vocab_size=stdlib_text.VOCABULARY,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return HfGpt2(seed, lambda: GPT2LMHeadModel(config), optimizer, batch, length, log_every, device)
