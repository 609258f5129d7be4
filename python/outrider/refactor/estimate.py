"""What a refactoring will take, before anything is written: tokens, steps, memory, disk and time."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from outrider.refactor.budgets import ROWS, stage_tokens
from outrider.refactor.errors import InputError

_STORED_BYTES = {"float32": 4}  # of one weight in a model folder; others are two bytes wide
# Operations that tuning reaches, as a share of those of one large matrix product on the same device.
_SHARE_OF_PRODUCT = {"cpu": 0.3, "cuda": 0.15}
# What a router that learns with the experts adds to a step: 131,685 tokens/s instead of 138,968 on an H200
# (docs/results/refactor_joint_more_h200.md).
_JOINT_SHARE = 0.055
# Where the device is not here: docs/results/refactor_throughput_h200.md, a dense model in passes of 16 texts.
_DOCUMENTED_RATE = 209_000 * 6 * 134.5e6
_DOCUMENTED = "209,000 tokens/s for 134.5 M parameters, measured on one H200, as no such device is here"


def sizes_of(model: Path) -> dict[str, int]:
    """`parameters`, `stored_bytes`, and of the config `layers`, `hidden`, `ffn`, `vocab`; of a folder or a GGUF file.

    Raises:
        InputError: E_GGUF or E_READ for a model that cannot be read.
    """
    if model.suffix == ".gguf":
        from outrider.model_import.gguf_check import check_gguf
        from outrider.model_import.gguf_import import open_gguf, read_config

        found = read_config(model, open_gguf(model))
        parameters = sum(int(np.prod(tensor.shape)) for tensor in check_gguf(model).values())
        shape = {"layers": found.layers, "hidden": found.hidden_size, "ffn": found.ffn, "vocab": found.vocab}
        return {"parameters": parameters, "stored_bytes": 2 * parameters, **shape}
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        stored = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        width = _STORED_BYTES.get(str(config.get("torch_dtype", config.get("dtype"))), 2)
        names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "ffn": "intermediate_size"}
        shape = {name: int(config[field]) for name, field in (names | {"vocab": "vocab_size"}).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E_READ", model, "config.json", repr(error)[:80], "the folder of a dense model") from error
    if not stored:
        raise InputError("E_READ", model, "*.safetensors", "no such file", "the weights of a dense model")
    return {"parameters": stored // width, "stored_bytes": stored, **shape}


def estimate(model: Path, options: dict[str, Any], rows: tuple[str, ...], domains: int = 1) -> dict[str, Any]:
    """Of all rows together unless the name says otherwise; `options`: of the row `ours`, every field filled in;
    `domains`: how many are measured, unseen ones too.

    Memory and disk are upper bounds from shapes, time is from a rate, see `time_basis`.
    """
    sizes, tokens = sizes_of(model), stage_tokens(options)
    steps = options["rounds"] * (options["router.steps"] + options["expert.steps"]) + options["router.last_steps"]
    adapter = options["tune"] != "full"
    # Two checkpoints of masters and two moments, and the model.
    kept = 4 * sizes["parameters"] if adapter else 2 * 12 * sizes["parameters"] + 4 * sizes["parameters"]
    operations = _operations(sizes["parameters"], options, rows, tokens, domains)
    rate, basis = _rate(options["device"], options["dtype"])
    return {
        "rows": len(rows),
        "steps_per_row": steps,
        "expert_tokens_per_row": tokens["expert"],
        "router_tokens": tokens["router"],
        "memory_bytes": _memory(sizes, options, adapter),
        "disk_bytes": (len(rows) + 1) * kept,
        "time_seconds": math.ceil(operations / rate),
        "time_basis": basis,
    }


def _operations(
    parameters: int, options: dict[str, Any], rows: tuple[str, ...], tokens: dict[str, int], domains: int
) -> float:
    """Floating-point operations: 2 a parameter and token forward, 4 backward; the router costs its
    targets, which need a backward pass by gradient mass."""
    teacher = 2 if options["distill"] > 0 else 0
    total = len(rows) * tokens["expert"] * (6 + teacher) * parameters
    routed = sum((options | ROWS.get(row, {}))["routing.kind"] in ("router", "layerwise") for row in rows)
    by_gradient = options["router.loss"] == "coverage" and options["coverage.mass"] == "gradient"
    joint = sum((options | ROWS.get(row, {}))["router.joint"] != "off" for row in rows)
    total += joint * tokens["expert"] * _JOINT_SHARE * 6 * parameters
    total += routed * tokens["router"] * (6 if by_gradient else 2) * parameters
    # Valid and test, with and without masks, the curve over tau, and the untouched parent.
    passes = 4 * len(rows) + len(options["eval_taus"].split(",")) + 1
    return float(total + domains * passes * options["eval_tokens"] * 2 * parameters)


def _memory(sizes: dict[str, int], options: dict[str, Any], adapter: bool) -> int:
    """Weights and their states, what a backward pass keeps of one micro-batch, the logits of one chunk."""
    width = 2 if options["dtype"] == "bfloat16" else 4
    # fp32 master, gradient and two moments; the compute copy and its gradient where they are of another dtype.
    states = width if adapter else 16 + (2 * width if width == 2 else 0)
    weights = sizes["parameters"] * (states + (width if options["distill"] > 0 else 0))
    texts = min(options["micro_batch"], options["batch"])
    # Where the router learns with the experts, co-executed steps keep h and its gradient; others make h again.
    channels = 8 + (2 if options["router.joint"] != "off" and options["coexec"] else 0)
    per_layer = width * (10 * sizes["hidden"] + channels * sizes["ffn"]) + 16 * sizes["hidden"]
    kept = texts * options["sequence"] * sizes["layers"] * per_layer
    logits = options["chunk"] * sizes["vocab"] * (8 + 2 * width) * (2 if options["distill"] > 0 else 1)
    return weights + kept + logits


def _rate(device: str, dtype: str) -> tuple[float, str]:
    """Operations a second that tuning will reach, and where the figure is from."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return _DOCUMENTED_RATE, _DOCUMENTED
    kind = "cuda" if device.startswith("cuda") else "cpu"
    size = 4096 if kind == "cuda" else 512
    a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter()
        product = a @ a
        product[0, 0].item()
        best = min(best, time.perf_counter() - begin)
    share = _SHARE_OF_PRODUCT[kind]
    reached = 2 * size**3 / best * share
    return reached, f"{share:.0%} of a product of {size} x {size} matrices, measured now: {reached / 1e9:,.0f} GFLOP/s"
