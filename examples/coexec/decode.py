"""Text generation under `no_grad` with a key/value cache that grows by one token at a time.

Python reads every token and decides when a sequence ends: a stop byte or the length limit.
"""

import torch

from . import stdlib_text
from .gpt import Gpt
from .program import Program

_STOP_BYTES = frozenset(b"\n #(:")


class Decode(Program):
    """Decodes sequence after sequence, sampling and greedy in turn.

    granularity "token": a step is one pass of the decoding loop, prefill or one new token;
    granularity "sequence": a step is a whole loop, as long as the stop rule lets it run.
    """

    def __init__(self, seed, prompt, tokens_max, granularity, device, **model):
        super().__init__(seed)
        self.net = Gpt(context=prompt + tokens_max + 1, dropout=0.0, **model).to(device).eval()
        self.models = {"net": self.net}
        self.prompt = prompt
        self.tokens_max = tokens_max
        self.granularity = granularity
        self.device = device
        self.sequences_done = 0
        self.begin_sequence()

    def begin_sequence(self):
        """Takes a new prompt from the text and empties the cache."""
        self.caches = [[] for _ in self.net.blocks]
        self.pending = torch.from_numpy(stdlib_text.random_windows(1, self.prompt - 1)).to(self.device)
        self.position = 0
        self.decoded = 0

    def advance(self):
        """One pass of the loop: feed what is pending, choose the next token. True at the end."""
        logits = self.net(self.pending, self.caches, self.position)[:, -1]
        if self.sequences_done % 2:
            choice = torch.argmax(logits, dim=-1, keepdim=True)
        else:
            choice = torch.multinomial(torch.softmax(logits / 0.8, dim=-1), 1)
        self.position += self.pending.shape[1]
        self.pending = choice
        self.decoded += 1
        token = choice.item()
        self.log.append(token)
        return token in _STOP_BYTES or self.decoded >= self.tokens_max

    @torch.no_grad()
    def step(self, i):
        """One token or one sequence (see the class); returns the last token as an int."""
        done = self.advance()
        while not done and self.granularity == "sequence":
            done = self.advance()
        if done:
            self.sequences_done += 1
            self.begin_sequence()
        return self.log[-1]

    def extras(self):
        """The cache in mid-sequence and the loop's counters."""
        state = {"position": self.position, "decoded": self.decoded, "sequences": self.sequences_done}
        for index, cache in enumerate(self.caches):
            state |= {f"cache.{index}.{part}": tensor for part, tensor in zip(("k", "v"), cache, strict=False)}
        state["pending"] = self.pending
        return state


def build(seed=0, prompt=16, tokens_max=48, granularity="token", width=64, layers=2, heads=4, device="cpu"):
    """Builds the program; lengths are in tokens."""
    model = {"width": width, "layers": layers, "heads": heads}
    return Decode(seed, prompt, tokens_max, granularity, device, **model)
