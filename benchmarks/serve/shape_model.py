"""A model folder of large shapes: random weights, the router and the mask histograms of a real model.

What a step costs does not depend on the values of weights, but on what is routed where: so prompts go through the real
router, and what the model writes is known ahead. A row of the embedding has deviation 1, all layers together add less
than that, and the head's row for the id that comes next is that of the id in front, so the largest logit is always the
same one (Inputs.next_ids). Every matrix is dense and random all the same.
"""

import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from outrider.refactor.atomic import write_file
from safetensors.torch import save_file
from shape_inputs import Inputs

sys.path.append(str(Path(__file__).resolve().parents[1]))

from llama_shape import config_of, layer_name, layer_sizes

SHAPES = {
    "7b": {"d": 4096, "ffn": 11008, "layers": 32, "heads": 32, "kv": 32, "context": 8192},
    "tiny": {"d": 256, "ffn": 320, "layers": 2, "heads": 4, "kv": 2, "context": 512},
}
IN, OUT = 0.02, 0.001  # deviations: of what reads the stream, and of what adds to it
ADDING = ("self_attn.o_proj", "mlp.down_proj")
RECIPE, LOCK, HEADER, INDEX = "recipe.json", "lock", "outrider.json", "model.safetensors.index.json"
SEED = 0


def make(folder: Path, inputs: Inputs, shape_name: str, device: str) -> dict[str, Any]:
    """The folder, where it is not there yet; one that was cut goes on, one that is being made is waited for. Facts."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _make(folder, inputs, shape_name, device)


def _make(folder: Path, inputs: Inputs, shape_name: str, device: str) -> dict[str, Any]:
    shape = SHAPES[shape_name]
    recipe = {"shape": shape, "seed": SEED, "inputs": _sum_of(inputs)}
    if (folder / RECIPE).is_file() and json.loads((folder / RECIPE).read_text()) != recipe:
        raise SystemExit(f"{folder}: found a model of another shape or of other inputs, expected none or the same")
    write_file(folder / RECIPE, json.dumps(recipe) + "\n")
    dtype = torch.uint8 if inputs.about["experts"] <= 8 else torch.uint16
    signatures = [resampled(histogram, shape["ffn"]).to(dtype) for histogram in _histograms(inputs, shape["layers"])]
    facts = {"shape": shape_name, **shape, "of": inputs.about["of"], **_mask_facts(signatures, inputs.about["experts"])}
    facts |= {"vocab": inputs.vocab + len(inputs.walk), "routes": inputs.about.get("routes", {})}
    if (folder / HEADER).is_file():
        return facts
    write_file(folder / "config.json", json.dumps(config_of(shape | {"vocab": facts["vocab"]}), indent=1) + "\n")
    _write_shards(folder, inputs, shape, device)
    save_file({"sig": torch.stack(signatures)}, folder / "outrider_masks.safetensors")
    router = {name: tensor.float().contiguous() for name, tensor in inputs.whole_router().items()}
    save_file(router, folder / "outrider_router.safetensors")
    header = {name: inputs.about[name] for name in ("experts", "tau", "router")}
    write_file(folder / HEADER, json.dumps({"version": 1, **header, "shape_model": facts}, indent=1) + "\n")
    return facts


def _sum_of(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    for name in ("inputs.json", "router.safetensors"):
        digest.update((inputs.folder / name).read_bytes())
    return digest.hexdigest()


def _histograms(inputs: Inputs, layers: int) -> list[dict[str, int]]:
    """Of the layer at the same depth."""
    found = inputs.about["histograms"]
    return [found[layer * len(found) // layers] for layer in range(layers)]


def resampled(histogram: dict[str, int], channels: int) -> torch.Tensor:
    """Signatures of `channels` channels in the same shares, equal ones together; the largest remainders round up."""
    total = sum(histogram.values())
    exact = {int(signature): count * channels / total for signature, count in histogram.items()}
    counts = {signature: int(share) for signature, share in exact.items()}
    left = channels - sum(counts.values())
    for signature in sorted(exact, key=lambda s: (counts[s] - exact[s], s))[:left]:
        counts[signature] += 1
    values = torch.tensor(sorted(counts))
    many = torch.tensor([counts[signature] for signature in sorted(counts)])
    return values.repeat_interleave(many)


def _mask_facts(signatures: list[torch.Tensor], experts: int) -> dict[str, float]:
    """Share of channels per expert, and of an expert's channels that another one has too; means."""
    bits = torch.arange(experts)[:, None]
    shares, overlaps = [], []
    for layer in signatures:
        has = ((layer.long() >> bits) & 1).double()
        sizes, both = has.sum(1), has @ has.T
        pairs = (both / sizes[:, None].clamp(min=1))[~torch.eye(experts, dtype=torch.bool)]
        shares.append(float(sizes.mean()) / len(layer))
        overlaps.append(float(pairs.mean()) if experts > 1 else 1.0)
    return {"share": round(sum(shares) / len(shares), 4), "overlap": round(sum(overlaps) / len(overlaps), 4)}


def _write_shards(folder: Path, inputs: Inputs, shape: dict[str, int], device: str) -> None:
    """A shard per layer and one for the rest; what is there already is not made again."""
    weight_map: dict[str, str] = {}
    count = shape["layers"] + 1
    for number in range(count):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        names = _names(number, shape)
        if not (folder / name).is_file():
            made = dict(_tables(inputs, shape, device) if number == 0 else _layer(number - 1, shape, device))
            save_file(made, folder / (name + ".tmp"))
            (folder / (name + ".tmp")).replace(folder / name)
        weight_map |= dict.fromkeys(names, name)
    write_file(folder / INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}) + "\n")


def _deviation(part: str, size: tuple[int, ...]) -> float:
    """Of the weights of a part; 0: ones."""
    if len(size) == 1:
        return 0.0
    return OUT if part in ADDING else IN


def _names(number: int, shape: dict[str, int]) -> list[str]:
    tables = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    return tables if number == 0 else [layer_name(number - 1, part) for part in layer_sizes(shape)]


def _layer(layer: int, shape: dict[str, int], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator(device).manual_seed(SEED + 1 + layer)
    for part, size in layer_sizes(shape).items():
        deviation = _deviation(part, size)
        drawn = deviation * torch.randn(size, generator=generator, device=device) if deviation else torch.ones(size)
        yield layer_name(layer, part), drawn.to(torch.bfloat16).cpu()


def _tables(inputs: Inputs, shape: dict[str, int], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator(device).manual_seed(SEED)
    following = inputs.next_ids().to(device)
    size = (len(following), shape["d"])
    embed = torch.randn(size, generator=generator, device=device).to(torch.bfloat16)
    yield "model.embed_tokens.weight", embed.cpu()
    yield "model.norm.weight", torch.ones(shape["d"], dtype=torch.bfloat16)
    head = IN * torch.randn(size, generator=generator, device=device)
    yield "lm_head.weight", head.index_add_(0, following, embed.float()).to(torch.bfloat16).cpu()
