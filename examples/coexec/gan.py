"""A small GAN on handwritten digits: two networks, two optimizers, two backward passes a step."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import digits
from .program import Program

_NOISE = 16


def make_generator(width):
    """Returns the generator: noise [n, 16] -> image [n, 1, 8, 8] in 0..1."""
    return nn.Sequential(
        nn.Linear(_NOISE, 4 * width),
        nn.BatchNorm1d(4 * width),
        nn.ReLU(),
        nn.Unflatten(1, (width, 2, 2)),
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )


def make_critic(width):
    """Returns the discriminator: image [n, 1, 8, 8] -> logit [n, 1]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(8 * width, 1),
    )


class Gan(Program):
    """Alternates a critic update and a generator update inside one step."""

    def __init__(self, seed, images, batch, width, log_every, device):
        super().__init__(seed)
        self.images = torch.from_numpy(images).unsqueeze(1)
        self.batch = batch
        self.log_every = log_every
        self.device = device
        self.generator = make_generator(width).to(device)
        self.critic = make_critic(width).to(device)
        rates = {"lr": 2e-3, "betas": (0.5, 0.999)}
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), **rates)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), **rates)
        self.models = {"generator": self.generator, "critic": self.critic}
        self.optimizers = {"generator": self.generator_optimizer, "critic": self.critic_optimizer}

    def step(self, i):
        """One critic and one generator update; returns the generator's loss."""
        rows = np.random.randint(0, len(self.images), size=self.batch)
        real = self.images[torch.from_numpy(rows)].to(self.device)
        ones = torch.ones(self.batch, 1, device=self.device)
        zeros = torch.zeros(self.batch, 1, device=self.device)
        fake = self.generator(torch.randn(self.batch, _NOISE, device=self.device))

        self.critic_optimizer.zero_grad()
        critic_loss = F.binary_cross_entropy_with_logits(self.critic(real), ones)
        critic_loss = critic_loss + F.binary_cross_entropy_with_logits(self.critic(fake.detach()), zeros)
        critic_loss.backward()
        self.critic_optimizer.step()

        self.generator_optimizer.zero_grad()
        generator_loss = F.binary_cross_entropy_with_logits(self.critic(fake), ones)
        generator_loss.backward()
        self.generator_optimizer.step()
        if i % self.log_every == 0:
            self.log += [critic_loss.item(), generator_loss.item()]
            return self.log[-1]
        return generator_loss


def build(seed=0, batch=16, width=8, log_every=1, device="cpu"):
    """Builds the program."""
    images, _ = digits.load()
    return Gan(seed, images, batch, width, log_every, device)
