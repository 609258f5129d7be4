"""The GPU programs: GPT-2 small in bf16, ResNet-50 under autocast. A new pinned batch in every step."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from coexec.gpt import Gpt
from coexec.program import make_optimizer
from torch import nn

BATCHES = 16
_VOCABULARY = 50257


class LanguageLoss(nn.Module):
    """GPT-2 small with its loss: tokens int64 [batch, time + 1] -> scalar."""

    def __init__(self):
        super().__init__()
        self.net = Gpt(_VOCABULARY, width=768, layers=12, heads=12, context=1024, dropout=0.0)

    def forward(self, tokens):
        """Mean next-token cross-entropy."""
        logits = self.net(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class ImageLoss(nn.Module):
    """ResNet-50 with its loss under bf16 autocast: (images, labels) -> scalar."""

    def __init__(self):
        super().__init__()
        import torchvision

        self.net = torchvision.models.resnet50()

    def forward(self, images, labels):
        """Mean cross-entropy."""
        with torch.autocast("cuda", torch.bfloat16):
            return F.cross_entropy(self.net(images), labels)


@dataclass(frozen=True)
class Workload:
    """One program, batch shape and optimizer; `batch` is how it is called in the results."""

    program: str
    batch: str
    optimizer: str
    count: int
    length: int

    def make_model(self):
        """Builds the model on the GPU from seed 0."""
        torch.manual_seed(0)
        if self.program == "gpt2-small":
            return LanguageLoss().to("cuda", torch.bfloat16)
        return ImageLoss().to("cuda", memory_format=torch.channels_last)

    def make_batches(self):
        """Pinned batches that the steps take in turn."""
        generator = torch.Generator().manual_seed(7)
        if self.program == "gpt2-small":
            shape = (self.count, self.length + 1)
            draw = functools.partial(torch.randint, 0, _VOCABULARY, shape, generator=generator)
            return [(draw().pin_memory(),) for _ in range(BATCHES)]
        shape = (self.count, 3, self.length, self.length)
        return [
            (
                torch.randn(shape, generator=generator).to(memory_format=torch.channels_last).pin_memory(),
                torch.randint(0, 1000, (self.count,), generator=generator).pin_memory(),
            )
            for _ in range(BATCHES)
        ]


class Training:
    """An ordinary training loop over a workload; `decorate` may replace the model by a compiled one."""

    def __init__(self, workload, decorate=lambda model: model):
        self.model = workload.make_model()
        self.called = decorate(self.model)
        rate = 1e-4 if workload.optimizer.startswith("adam") else 1e-3
        self.optimizer = make_optimizer(workload.optimizer, self.model.parameters(), rate)
        self.batches = workload.make_batches()

    def step(self, i):
        """One training step; returns the loss tensor, unread."""
        batch = [part.to("cuda", non_blocking=True) for part in self.batches[i % BATCHES]]
        self.optimizer.zero_grad()
        loss = self.called(*batch)
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self):
        """Name -> tensor of everything that training changes."""
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        found = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name, parameter in self.model.named_parameters():
            found[f"{name}.grad"] = parameter.grad.detach().clone()
            for key, value in self.optimizer.state[parameter].items():
                if torch.is_tensor(value):
                    found[f"{name}.{key}"] = value.detach().clone()
        found["rng"] = torch.cuda.get_rng_state()
        return found


GPT_SMALL_BATCH = [Workload("gpt2-small", "B1xT64", optimizer, 1, 64) for optimizer in ("adamw_fused", "sgd", "adamw")]
RESNET = [Workload("resnet50", "B4x224", "sgd", 4, 224)]
GPT_LARGE_BATCH = [
    Workload("gpt2-small", "B8xT512", optimizer, 8, 512) for optimizer in ("adamw", "adamw_fused", "sgd")
]
WORKLOADS = GPT_SMALL_BATCH + RESNET + GPT_LARGE_BATCH
