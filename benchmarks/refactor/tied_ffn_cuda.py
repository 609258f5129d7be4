"""Checks and times the CUDA form of the channel-record FFN; the dense FFN of torch runs in turns beside it.

    python benchmarks/refactor/tied_ffn_cuda.py [--json FILE] [--signatures FILE.npy] [--ids FILE.npy] [--no-checks]

`--signatures` int [L, D0]: their histogram is resampled to D channels; `--ids` int [T]: expert ids of real text.
Without them both are drawn by seed. Needs compute capability 9.0, nvcc and torch, nothing else.
"""

import argparse
import json
import pathlib
import statistics
import sys

import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/gpu"), str(ROOT / "benchmarks/coexec")]

import measure  # noqa: E402
import tied_ffn  # noqa: E402

WARM_UP, REPEATS = 10, 50
SHORT_RUN = 7


def medians(sides):
    """Name -> function; runs them in turns and returns name -> median milliseconds on the device."""
    for _ in range(WARM_UP):
        for side in sides.values():
            side()
    pairs = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, side in sides.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            side()
            end.record()
            pairs[name].append((start, end))
    tied_ffn.settle("timing")
    return {name: statistics.median(s.elapsed_time(e) for s, e in events) for name, events in pairs.items()}


def dense_ffn(width, active):
    """A SwiGLU FFN of `active` channels from torch's own operators."""
    gate, up, down = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) / width**0.5
                      for shape in ((active, width), (active, width), (width, active)))  # fmt: skip
    return lambda x: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def resampled(signatures, channels, generator):
    """`channels` draws from the layers' signatures together, sorted."""
    pool = torch.as_tensor(signatures).flatten().long()
    return pool[torch.randint(0, len(pool), (channels,), generator=generator)].sort().values


def stored_orders(signatures):
    """Name -> signatures in another stored order: kernels copy channels of a list that lie together at once."""
    generator = torch.Generator().manual_seed(3)
    whole = len(signatures) // SHORT_RUN * SHORT_RUN
    runs = signatures[:whole].view(-1, SHORT_RUN)
    runs = runs[torch.randperm(len(runs), generator=generator)].flatten()
    return {
        "by signature": signatures,
        f"in runs of {SHORT_RUN}": torch.cat([runs, signatures[whole:]]),
        "in no order": signatures[torch.randperm(len(signatures), generator=generator)],
    }


def time_prefill(layer, ids, active):
    """Milliseconds of one layer over all tokens, beside the dense FFN of width `active` and beside that of its mean."""
    tokens, width = len(ids), layer.width
    x = torch.randn(tokens, width, device="cuda").bfloat16()
    y, scratch, plan = torch.empty_like(x), layer.prefill_scratch(tokens), layer.plan(ids)
    dense = dense_ffn(width, active)
    sides = {"dense": lambda: dense(x), "ours_planned": lambda: layer.prefill(x, plan, scratch, y)}
    sides["ours"] = lambda: layer.prefill(x, layer.plan(ids), scratch, y)
    sides["plan"] = lambda: layer.plan(ids)
    times = medians(sides)
    flops = 6 * width * sum(int((ids == e).sum()) * len(c) for e, c in enumerate(layer.lists))
    return {
        **{f"{name}_ms": value for name, value in times.items()},
        "ratio": times["ours"] / times["dense"],
        "dense_tflops": 6 * width * active * tokens / times["dense"] / 1e9,
        "ours_tflops": flops / times["ours"] / 1e9,
        "tokens_per_expert": torch.bincount(ids.long(), minlength=layer.experts).tolist(),
    }


def time_decode(layer, ids, tokens):
    """Milliseconds of one step and GB/s over the records that it has to read."""
    few = ids[:tokens].contiguous()
    x = torch.randn(tokens, layer.width, device="cuda").bfloat16()
    y, scratch = torch.empty_like(x), layer.decode_scratch(tokens)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        layer.on_stream(stream)
        layer.decode(x, few, scratch, y)
    layer.on_stream(torch.cuda.current_stream())
    times = medians({"launched": lambda: layer.decode(x, few, scratch, y), "graph": graph.replay})
    read = int(layer.mask[few.unique().long()].any(0).sum()) * 6 * layer.width
    return {
        "tokens": tokens,
        "experts": len(few.unique()),
        "ms": times["launched"],
        "graph_ms": times["graph"],
        "gb_per_s": read / times["graph"] / 1e6,
    }


def row_of(prefill):
    """What a table of results shows."""
    times = {"dense_ms": prefill["dense_ms"], "ours_ms": prefill["ours_ms"], "ours_to_dense": prefill["ratio"]}
    return {"form": f"prefill, {prefill['tokens']} tokens, stored {prefill['order']}", **times}


def copy_bandwidth():
    """GB/s of a large device copy, read and write counted."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / medians({"copy": lambda: b.copy_(a)})["copy"] / 1e6


def main():
    """Prints one line per figure and, on request, writes all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--signatures", type=pathlib.Path)
    parser.add_argument("--ids", type=pathlib.Path)
    parser.add_argument("--no-checks", action="store_true")
    for name, default in (("width", 4096), ("channels", 11008), ("active", 5504), ("experts", 8), ("tokens", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    good = options.no_checks or tied_ffn.run_checks()
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    if options.signatures:
        signatures = resampled(np.load(options.signatures).astype(np.int64), options.channels, generator)
    else:
        signatures = tied_ffn.random_signatures(options.channels, options.experts, options.active, common=0.5)
    if options.ids:
        ids = torch.from_numpy(np.load(options.ids).astype(np.int64)).flatten()[: options.tokens]
    else:
        ids = torch.randint(0, options.experts, (options.tokens,), generator=generator)
    ids = ids.to(torch.uint8).cuda()
    layer = tied_ffn.Layer(options.width, signatures, options.experts)
    found = {
        "circumstances": measure.circumstances(),
        "checks": bool(good),
        "width": options.width,
        "channels": options.channels,
        "active": [len(c) for c in layer.lists],
    }
    found["prefill"] = []
    for order, ordered in stored_orders(signatures).items():
        other = tied_ffn.Layer(options.width, ordered, options.experts)
        for tokens in (options.tokens, options.tokens // 8):
            times = time_prefill(other, ids[:tokens].contiguous(), options.active)
            found["prefill"].append({"order": order, "tokens": tokens, **times})
    found |= {"copy_gb_per_s": copy_bandwidth(), "rows": [row_of(prefill) for prefill in found["prefill"]]}
    found["decode"] = [time_decode(layer, ids, tokens) for tokens in (1, 2, 4, 8, 16, 32)]
    print(json.dumps(found, indent=1))
    if options.json:
        measure.save(options.json, found)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
