"""Low-rank corrections of a parent's weights (LoRA, arXiv 2106.09685). The format is docs/formats/adapter.md."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.refactor.errors import InputError

if TYPE_CHECKING:
    import torch

ADAPTER = "outrider_adapter.safetensors"


@dataclass(frozen=True)
class Adapter:
    """`pairs`: weight name in HF files -> a [rank, in] and b [out, rank], fp32; the effective weight is W + b a.

    `base_sha256` is that of the parent's weights.
    """

    path: Path
    rank: int
    dtype: str
    base_sha256: str
    pairs: "dict[str, tuple[torch.Tensor, torch.Tensor]]"

    def add_to(self, model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
        """Replaces the weights of an HF model by the effective ones; returns copies of what they were.

        Raises:
            InputError: E_ADAPTER when a pair fits no weight of the model; nothing is changed then.
        """
        import torch

        weights = dict(model.named_parameters())
        for name, (a, b) in self.pairs.items():
            shape = (b.shape[0], a.shape[1])
            if name not in weights or tuple(weights[name].shape) != shape:
                found = f"{list(weights[name].shape)}" if name in weights else "no such weight in the model"
                raise InputError("E_ADAPTER", self.path, name, found, f"{list(shape)}")
        before = {}
        with torch.no_grad():
            for name, (a, b) in self.pairs.items():
                weight = weights[name]
                before[name] = weight.detach().clone()
                weight.copy_(torch.addmm(weight.float(), b.to(weight.device), a.to(weight.device)))
        return before


def restore(model: "torch.nn.Module", before: "dict[str, torch.Tensor]") -> None:
    """Undoes `add_to`."""
    import torch

    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in before.items():
            weights[name].copy_(weight)


def load_adapter(path: Path) -> Adapter:
    """Reads and checks an adapter file.

    Raises:
        InputError: E_ADAPTER naming the field or tensor that does not fit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError("E_ADAPTER", path, "tensors", str(error)[:100], "a safetensors file") from error
    rank, scale, dtype = _header(path, metadata)
    names = sorted({name.rsplit(".", 2 if name.endswith(".scale") else 1)[0] for name in tensors})
    pairs = {}
    for name in names:
        a, b = (_half(path, tensors, f"{name}.{half}", dtype) for half in "ab")
        if a.shape[0] != rank or b.shape[1] != rank:
            raise InputError("E_ADAPTER", path, name, f"rank {a.shape[0]} and {b.shape[1]}", f"{rank}")
        pairs[name] = (a, b * scale)
    if tensors:
        raise InputError("E_ADAPTER", path, sorted(tensors)[0], "a tensor of no pair", "<weight>.a and <weight>.b")
    return Adapter(path, rank, dtype, metadata.get("base_sha256", ""), pairs)


def _header(path: Path, metadata: dict[str, str]) -> tuple[int, float, str]:
    if metadata.get("format") != "1":
        raise InputError("E_ADAPTER", path, "format", repr(metadata.get("format")), "1")
    dtype = metadata.get("dtype", "")
    if dtype not in ("bfloat16", "int8"):
        raise InputError("E_ADAPTER", path, "dtype", repr(dtype), "bfloat16 or int8")
    try:
        rank, scale = int(metadata["rank"]), float(metadata["scale"])
    except (KeyError, ValueError) as error:
        raise InputError("E_ADAPTER", path, "rank and scale", json.dumps(metadata)[:80], "two numbers") from error
    if rank < 1 or not math.isfinite(scale):
        raise InputError("E_ADAPTER", path, "rank and scale", f"{rank} and {scale}", "a rank above 0, a finite scale")
    return rank, scale, dtype


def _half(path: Path, tensors: "dict[str, torch.Tensor]", name: str, dtype: str) -> "torch.Tensor":
    """One half of a pair as fp32; takes what it read out of `tensors`."""
    import torch

    stored = tensors.pop(name, None)
    expected = torch.int8 if dtype == "int8" else torch.bfloat16
    if stored is None or stored.dim() != 2 or stored.dtype != expected:
        found = "no such tensor" if stored is None else f"{stored.dtype} {list(stored.shape)}"
        raise InputError("E_ADAPTER", path, name, found, f"a matrix of {expected}")
    value = stored.float()
    if dtype == "int8":
        scale = tensors.pop(f"{name}.scale", None)
        if scale is None or scale.shape != stored.shape[:1]:
            found = "no such tensor" if scale is None else f"{list(scale.shape)}"
            raise InputError("E_ADAPTER", path, f"{name}.scale", found, f"[{stored.shape[0]}]")
        value = value * scale.float()[:, None]
    if not bool(torch.isfinite(value).all()):
        raise InputError("E_ADAPTER", path, name, "a value that is NaN or infinite", "finite numbers")
    return value
