"""Times both CPU forms of the channel-record FFN beside a dense SwiGLU FFN of torch's own operators, in turns.

    PYTHONPATH=python python benchmarks/refactor/tied_ffn_cpu.py [--artifact DIR] [--traces FILE.npz] [--json FILE]

`--artifact`: a refactored model, whose masks are taken (several of its layers); `--traces`: expert ids of real text,
an array a domain. Without them both are drawn by seed. Weights are random: the cost does not depend on them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from outrider import _core
from outrider.refactor.artifact import load_artifact

ROUNDS, CALLS, PAUSE_S = 15, 4, 0.01
LAYERS = 3  # of an artifact


def as_array(tensor):
    """The same memory as numpy; bf16 as its bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def in_turns(sides):
    """Name -> function; returns name -> (median, least) milliseconds. In a pause the other threads go to sleep."""
    times = {name: [] for name in sides}
    for round_number in range(ROUNDS):
        for name, side in sides.items():
            for call in range(CALLS + 1):
                start = time.perf_counter()
                side()
                if call > 0 and round_number > 0:
                    times[name].append((time.perf_counter() - start) * 1e3)
            time.sleep(PAUSE_S)
    return {name: (statistics.median(values), min(values)) for name, values in times.items()}


def random_signatures(generator, channels, experts, active):
    """Half of what decides about a channel is common to all experts; ordered by signature, as in a file."""
    common = torch.randn(channels, generator=generator)
    signatures = torch.zeros(channels, dtype=torch.int64)
    for expert in range(experts):
        score = common + torch.randn(channels, generator=generator)
        signatures[score.topk(active).indices] |= 1 << expert
    return signatures.sort().values


def time_layer(signatures, experts, ids, width, dtype, threads, generator):
    """One layer with these masks: prefill of all ids, decode of the first 1, 4 and 16."""
    torch.set_num_threads(threads)
    channels, tokens = len(signatures), len(ids)
    active = int(sum((signatures >> e & 1).sum() for e in range(experts)) / experts)
    make = lambda *shape: (torch.randn(shape, generator=generator) / width**0.5).to(dtype)  # noqa: E731
    matrices = {"gate": make(channels, width), "up": make(channels, width), "down": make(width, channels)}
    arrays = {name: as_array(matrix) for name, matrix in matrices.items()}
    bits = signatures.numpy().astype(np.uint16)
    ffn = _core.TiedFfn(**arrays, signatures=bits, experts=experts, threads=threads)
    gate, up, down = make(active, width), make(active, width), make(width, active)
    dense = lambda x: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)  # noqa: E731
    x, y = make(tokens, width), torch.empty(tokens, width, dtype=dtype)
    sides = {"dense": lambda: dense(x), "prefill": lambda: ffn.prefill(as_array(x), as_array(y), ids)}
    for n in (1, 4, 16):
        few = (as_array(x[:n]), as_array(y[:n]), ids[:n])
        sides[f"dense_{n}"] = lambda n=n: dense(x[:n])
        sides[f"decode_{n}"] = lambda few=few: ffn.decode(*few)
    times = in_turns(sides)
    found = {"dtype": str(dtype).removeprefix("torch."), "threads": threads, "engine": ffn.engines[0], "active": active}
    found |= {"tokens_per_expert": np.bincount(ids, minlength=experts).tolist(), "ms": times}
    found["prefill_ratio"] = times["prefill"][0] / times["dense"][0]
    found["decode_ratio"] = {n: times[f"decode_{n}"][0] / times[f"dense_{n}"][0] for n in (1, 4, 16)}
    return found


def read_ids(options, generator):
    """uint8 [tokens]: the same number from the beginning of each domain of the traces, else drawn."""
    if options.traces is None:
        return torch.randint(0, options.experts, (options.tokens,), generator=generator).numpy().astype(np.uint8)
    with np.load(options.traces) as traces:
        domains = [traces[name].reshape(-1) for name in sorted(traces.files)]
    share = -(-options.tokens // len(domains))
    return np.concatenate([domain[:share] for domain in domains])[: options.tokens].astype(np.uint8)


def main():
    """Prints a line a figure and, on request, writes them all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    for name, default in (("width", 576), ("channels", 1536), ("active", 768), ("experts", 8), ("tokens", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    if options.artifact:
        artifact = load_artifact(options.artifact)
        options.experts = artifact.experts
        chosen = torch.linspace(0, len(artifact.signatures) - 1, LAYERS).long().tolist()
        layers = {layer: artifact.signatures[layer] for layer in chosen}
    else:
        layers = {0: random_signatures(generator, options.channels, options.experts, options.active)}
    ids = read_ids(options, generator)
    rows = []
    with torch.no_grad():
        for layer, signatures in layers.items():
            for dtype in (torch.float32, torch.bfloat16):
                for threads in options.threads:
                    arguments = (signatures, options.experts, ids, options.width, dtype, threads, generator)
                    row = {"layer": layer} | time_layer(*arguments)
                    rows.append(row)
                    print(
                        f"layer {layer} {row['dtype']} {threads} thread(s), {row['engine']}: dense"
                        f" {row['ms']['dense'][0]:.2f} ms, prefill {row['ms']['prefill'][0]:.2f} ms, ratio"
                        f" {row['prefill_ratio']:.2f} (least of both"
                        f" {row['ms']['prefill'][1] / row['ms']['dense'][1]:.2f}); decode over dense at 1, 4, 16 tokens"
                        f" {', '.join(f'{ratio:.2f}' for ratio in row['decode_ratio'].values())}"
                    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
