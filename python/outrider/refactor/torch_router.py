"""The router in plain PyTorch: the reference that other implementations are compared with.

One causal block outside the backbone, token ids in, logits over experts out (Read-ME, arXiv 2410.19123, and the
authors' code): pre-RMSNorm, rotary positions, q, k, v and o with bias, attention logits unscaled as published or
divided by sqrt(head dim), an MLP that is not gated, an output norm and a linear head with bias.
"""

from pathlib import Path

import torch
from torch.nn import functional

from outrider.refactor.artifact import RouterShape
from outrider.refactor.errors import InputError

_EPS = 1e-6


def expected_shapes(shape: RouterShape, vocab: int, experts: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every stored tensor; 17,965,063 numbers for the published form with V = 32000 and N = 7."""
    w = shape.width
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocab, w)} if shape.embed == "own" else {}
    if shape.attention:
        shapes["block.attn_norm.weight"] = (w,)
        for name in "qkvo":
            shapes |= {f"block.{name}.weight": (w, w), f"block.{name}.bias": (w,)}
    shapes["block.mlp_norm.weight"] = (w,)
    for name in ("w1", "w2"):
        shapes |= {f"block.{name}.weight": (w, w), f"block.{name}.bias": (w,)}
    return shapes | {"norm.weight": (w,), "head.weight": (experts, w), "head.bias": (experts,)}


class TorchRouter:
    """Weights in fp32. A tied router reads `backbone` [V, d] in place, so that it follows later changes of the table.

    Raises:
        InputError: E_ROUTER naming a missing, extra or misshapen tensor.
    """

    def __init__(
        self,
        shape: RouterShape,
        experts: int,
        tensors: dict[str, torch.Tensor],
        backbone: torch.Tensor,
        where: Path | str,
    ) -> None:
        self.shape, self.experts = shape, experts
        self._backbone = backbone
        expected = expected_shapes(shape, backbone.shape[0], experts)
        if shape.embed == "tied" and backbone.shape[1] < shape.width:
            raise InputError("E_ROUTER", where, "embed", f"a table of {backbone.shape[1]} columns", f"{shape.width}")
        if odd := sorted(expected.keys() ^ tensors.keys()):
            found = "missing" if odd[0] in expected else "a tensor that no router has"
            raise InputError("E_ROUTER", where, odd[0], found, ", ".join(expected))
        for name, size in expected.items():
            if tuple(tensors[name].shape) != size:
                raise InputError("E_ROUTER", where, name, f"{list(tensors[name].shape)}", f"{list(size)}")
        self._weights = {name: tensor.to(backbone.device, torch.float32) for name, tensor in tensors.items()}

    def logits(self, ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """ids int64 [B, S] -> fp32 [B, S, N]; position t sees ids 0 to t. `real` [B, S]: False for padding."""
        x = self._embed(ids)
        if self.shape.attention:
            x = x + self._attention(self._norm(x, "block.attn_norm"), real)
        inner = functional.silu(self._linear(self._norm(x, "block.mlp_norm"), "block.w1"))
        x = x + self._linear(inner, "block.w2")
        return self._linear(self._norm(x, "norm"), "head")

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        if self.shape.embed == "own":
            return functional.embedding(ids, self._weights["embed.weight"])
        return functional.embedding(ids, self._backbone.detach()[:, : self.shape.width]).float()

    def _attention(self, x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        batch, count, width = x.shape
        q, k, v = (
            self._linear(x, f"block.{name}").view(batch, count, self.shape.heads, -1).transpose(1, 2) for name in "qkv"
        )
        q, k = self._rotate(q), self._rotate(k)
        seen = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        if real is not None:
            # Each position sees itself, so that the row of a padding position is not empty.
            seen = seen & real[:, None, None, :] | torch.eye(count, dtype=torch.bool, device=x.device)
        scale = 1.0 if self.shape.scale == "none" else (width // self.shape.heads) ** -0.5
        weights = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf")).softmax(-1)
        return self._linear((weights @ v).transpose(1, 2).reshape(batch, count, width), "block.o")

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotates the pairs (i, i + head dim / 2) of x [B, H, S, head dim]."""
        half = x.shape[-1] // 2
        frequency = self.shape.rope_base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequency
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1
        )

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS) * self._weights[f"{name}.weight"]

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])


def route(logits: torch.Tensor, tau: float = 0.0, real: torch.Tensor | None = None) -> torch.Tensor:
    """Expert ids [B, S] of logits [B, S, N]: the highest logit, ties to the lowest index.

    With `tau` > 0 (nats) the previous token's id stays until another logit leads its own by at least tau. A token
    behind padding (`real` [B, S] False) has no previous one.
    """
    experts = logits.shape[-1]
    numbers = torch.arange(experts, device=logits.device)
    best = torch.where(logits == logits.amax(-1, keepdim=True), numbers, experts).amin(-1)
    if tau <= 0:
        return best
    ids = best.clone()
    for t in range(1, logits.shape[1]):
        previous = ids[:, t - 1 : t]
        lead = logits[:, t].gather(1, best[:, t : t + 1]) - logits[:, t].gather(1, previous)
        stays = (lead < tau)[:, 0]
        if real is not None:
            stays &= real[:, t - 1]
        ids[:, t] = torch.where(stays, previous[:, 0], best[:, t])
    return ids
