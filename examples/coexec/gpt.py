"""A small GPT in plain PyTorch, shared by the text programs."""

import random

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Causal self-attention with an optional growing key/value cache."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x, cache=None):
        """x: [batch, time, width]; `cache` (a list [keys, values] or empty) is extended in place."""
        batch, time, width = x.shape
        shape = (batch, time, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.project_in(x).split(width, dim=2))
        causal = time > 1
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
            cache[:] = [k, v]
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=causal)
        return self.project_out(mixed.transpose(1, 2).reshape(batch, time, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x, cache=None):
        """x and result: [batch, time, width]."""
        x = x + self.drop(self.attention(self.attention_norm(x), cache))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class Gpt(nn.Module):
    """Byte-level GPT; `layer_drop` is the chance, decided in Python, that a block is skipped."""

    def __init__(self, vocabulary=256, width=64, layers=2, heads=4, context=512, dropout=0.1, layer_drop=0.0):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.drop = nn.Dropout(dropout)
        self.layer_drop = layer_drop

    def forward(self, tokens, caches=None, start=0):
        """tokens: int64 [batch, time], the first at position `start`; returns logits [batch, time, vocabulary]."""
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.drop(self.token(tokens) + self.position(positions))
        for index, block in enumerate(self.blocks):
            if self.training and self.layer_drop and random.random() < self.layer_drop:
                continue
            x = block(x, None if caches is None else caches[index])
        return self.head(self.norm(x))
