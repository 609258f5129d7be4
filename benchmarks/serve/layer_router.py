"""Fits the baseline `layerwise`: a linear router in every layer of a refactored model, from the FFN's input to experts.

PYTHONPATH=python python benchmarks/serve/layer_router.py ARTIFACT --parent MODEL --load other.json --out r.safetensors

Ridge regression of the share of each expert in a token's activation mass, on inputs of the model as it is routed; texts
are those of a load (`outrider bench load`), best of another seed than the replayed one. `outrider refactor --rows
layerwise` trains such routers together with the model; for what a step reads and how long it takes this will do.
"""

import argparse
from pathlib import Path

import torch
from outrider import hf
from outrider.serve.replay.load_file import read_load
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

RIDGE = 1e-2  # of the mean square of an input


class Fit:
    """Normal equations of one layer."""

    def __init__(self, masks: torch.Tensor, norms: torch.Tensor) -> None:
        self.masks, self.norms = masks, norms  # [N, D], [D]
        self.x: torch.Tensor | None = None
        self.xx: torch.Tensor | float = 0.0
        self.xy: torch.Tensor | float = 0.0

    def on_input(self, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        x = given[0].flatten(0, -2).double()
        self.x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)

    def on_hidden(self, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        mass = given[0].flatten(0, -2).abs().double() * self.norms
        share = mass @ self.masks.T / mass.sum(1, keepdim=True)
        assert self.x is not None
        self.xx = self.xx + self.x.T @ self.x
        self.xy = self.xy + self.x.T @ (share - share.mean(1, keepdim=True))

    def solve(self) -> torch.Tensor:
        """[N, d + 1], the bias last."""
        assert isinstance(self.xx, torch.Tensor) and isinstance(self.xy, torch.Tensor)
        ridge = torch.eye(len(self.xx), dtype=self.xx.dtype) * RIDGE * self.xx.diagonal()[:-1].mean()
        ridge[-1, -1] = 0
        return torch.linalg.solve(self.xx + ridge, self.xy).T


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--parent", type=Path, required=True)
    parser.add_argument("--load", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4000)
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.parent, dtype=torch.float32)
    signatures = load_file(given.artifact / "outrider_masks.safetensors")["sig"].long()
    experts = int(signatures.max()).bit_length()
    fits = []
    for layer, signature in zip(model.model.layers, signatures, strict=True):
        masks = torch.stack([(signature >> expert & 1).double() for expert in range(experts)])
        fit = Fit(masks, layer.mlp.down_proj.weight.detach().double().norm(dim=0))
        layer.mlp.gate_proj.register_forward_pre_hook(fit.on_input)
        layer.mlp.down_proj.register_forward_pre_hook(fit.on_hidden)  # before the masks, which `apply` adds
        fits.append(fit)
    hf.apply(model, given.artifact)
    seen = 0
    with torch.no_grad():
        for prompt in read_load(given.load).prompts:
            if seen >= given.tokens:
                break
            model(torch.tensor([prompt]), use_cache=False)
            seen += len(prompt)
    solved = torch.stack([fit.solve() for fit in fits]).float()
    tensors = {"weight": solved[:, :, :-1].contiguous(), "bias": solved[:, :, -1].contiguous()}
    save_file(tensors, given.out, {"tokens": str(seen), "format": "1"})
    print(f"{seen} tokens, {experts} experts, {len(fits)} layers: {given.out}")


if __name__ == "__main__":
    main()
