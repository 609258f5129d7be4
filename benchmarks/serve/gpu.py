"""Milliseconds per decode step of the GPU executor at 7B shapes, and how near that is to the device's bandwidth.

    PYTHONPATH=python python benchmarks/serve/gpu.py --output FILE [--signatures FILE] [--steps 20] [--blocks 5]

Weights are random: cost does not depend on their values. The pages hold random keys and values, as behind a long
prompt. Masks of the experts: `--signatures`, JSON, a list with one object per layer that maps signatures (bit e: expert
e has the channel) to how many channels have it, from which channels are drawn; it stands for the 50 % masks. Without it
masks are synthetic: a share of channels per expert, of which two experts share `share + 0.4 * (1 - share)`, 70 % at a
half.

Two programs run a dense model: our kernels, and library products (gate and up as one) with the library's norms and our
attention, both as captured graphs; `library` rows are what the others are compared with. Those have 32 rows in every
product (`exact`), so that a text's bits do not depend on its neighbours, or as many as there are tokens. Our kernels
have one form, whose bits never depend on them.

First a small model is checked: graphs against plain operators, and bits against chunking, neighbours, page numbers and
padding. A failed check ends the program with 1, after all that it found is printed and saved. `--check-only` ends
there; `--device cpu` checks the plain operators alone; `--profile` prints the device time of each kernel instead.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from outrider import _core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))
from measure import circumstances, interleave, markdown_table, save, spread

PAGE, CONTEXT, EXPERTS = 16, 512, 8
SMALL = {"layers": 3, "width": 512, "heads": 8, "kv_heads": 2, "ffn": 1536, "vocab": 1000, "context": 256}
NARROW = SMALL | {"layers": 2, "width": 576, "heads": 9, "kv_heads": 3}
LARGE = {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008, "vocab": 32000, "context": 4096}
BATCHES, SHARES = (1, 8, 32), (0.5, 0.75, 1.0)
TOLERANCE = 0.03  # of the largest logit; bf16 rounds in other places
NO_EXPERTS = np.zeros(0, np.uint8)
COLUMNS = ["program", "share", "overlap", "exact", "batch", "distinct_experts", "step_ms", "device_ms",
           "overhead_share", "tokens_per_second", "weight_bytes", "ffn_bytes", "cache_bytes", "share_of_copy_bandwidth",
           "share_of_read_bandwidth", "times_as_fast_as_library", "host_waits_per_step",
           "spread"]  # fmt: skip
BY_HAND = "<!-- Below: by hand; the program keeps it. -->"


def synthetic(shape, experts, share, seed):
    """Signatures per layer: each channel has a popularity of its own, drawn so that experts overlap as said above."""
    generator = np.random.default_rng(seed)
    overlap = share + 0.4 * (1 - share)
    concentration = share * (1 - share) / (share * overlap - share**2) - 1
    layers = []
    for _ in range(shape["layers"]):
        popular = generator.beta(share * concentration, (1 - share) * concentration, shape["ffn"])
        has = generator.random((experts, shape["ffn"])) < popular
        layers.append(np.sort((has << np.arange(experts)[:, None]).sum(0)).astype(np.uint16))
    return layers


def resampled(path, shape, seed):
    """Signatures drawn from the histogram of a real model, its layers in turns, and the number of its experts."""
    generator = np.random.default_rng(seed)
    histograms = json.loads(Path(path).read_text())
    layers = []
    for layer in range(shape["layers"]):
        histogram = histograms[layer % len(histograms)]
        values = np.array([int(s) for s in histogram], np.uint16)
        counts = np.array(list(histogram.values()), float)
        layers.append(np.sort(generator.choice(values, shape["ffn"], p=counts / counts.sum())))
    return layers, int(max(int(layer.max()) for layer in layers)).bit_length()


def overlap_of(layers, experts):
    """Share of channels per expert, and of an expert's channels that another one has too; means."""
    masks = np.stack([[(layer >> e) & 1 for e in range(experts)] for layer in layers]).astype(np.int64)
    sizes = masks.sum(2)
    both = np.einsum("lec,lfc->lef", masks, masks)
    pairs = [(both[:, a, b] / sizes[:, a]).mean() for a in range(experts) for b in range(experts) if a != b]
    return float(sizes.mean() / masks.shape[2]), float(np.mean(pairs))


class Text:
    def __init__(self, shape, experts, tokens, pages, seed):
        generator = np.random.default_rng(seed)
        self.ids = generator.integers(0, shape["vocab"], tokens, dtype=np.int32)
        self.experts = generator.integers(0, experts, tokens, dtype=np.uint8) if experts > 1 else NO_EXPERTS
        self.pages = np.array(pages, np.int32)

    def piece(self, first, count, logits_from=0):
        part = slice(first, first + count)
        return _core.PassRun(self.ids[part], self.experts[part], first, self.pages, logits_from)


class Check:
    """Runs comparisons, prints each and keeps what they found."""

    def __init__(self):
        self.found, self.failed = [], False

    def compare(self, name, got, expected, tolerance, required=True):
        error = np.abs(got.astype(np.float64) - expected)
        bad = not np.isfinite(got).all()
        at = np.unravel_index(np.argmax(np.where(np.isfinite(error), error, np.inf)), error.shape)
        largest = float(np.abs(expected).max())
        limit = tolerance * largest
        rows = sorted({int(r) for r in np.nonzero(~(error <= limit))[0]})
        row = {
            "check": name,
            "max_error": float(error[at]),
            "at": [int(i) for i in at],
            "largest": largest,
            "not_finite": bool(bad),
            "rows_beyond": rows[:8],
            "rows": int(got.shape[0]),
            "required": required,
        }
        row["passed"] = not rows and not bad
        self.failed |= required and not row["passed"]
        self.found.append(row)
        print(("ok   " if row["passed"] else "DIFFERS" if required else "differs (allowed)"), json.dumps(row))

    def equal(self, name, got, expected, required=True):
        self.compare(name, np.asarray(got), np.asarray(expected), 0.0, required)


def in_pieces(passes, text, other, size, tokens):
    """Logits of the text run in pieces, each behind some tokens of another text."""
    rows = []
    for first in range(0, tokens, size):
        count = min(size, tokens - first)
        before = min(count, 3)
        runs = [other.piece(0, before, before), text.piece(first, count)] if other else [text.piece(first, count)]
        rows.append(passes.run(runs)[0])
    return np.concatenate(rows)


def check(device):
    """Compares small models with themselves under all that must not matter."""
    made = Check()
    for shape in (SMALL, NARROW):
        check_shape(made, shape, device)
    return made


def check_shape(made, shape, device):
    tokens = 70
    dtype = "bf16" if device == "cuda" else "f32"
    weights = _core.GpuWeights(**shape, device=device, dtype=dtype)
    for experts in (0, 4):
        signatures = synthetic(shape, experts, 0.5, 1) if experts else []
        packed = _core.GpuModel(weights, experts, signatures)
        plain = _core.GpuPasses(packed, pages=40, step_tokens=160, reference=True)
        graphs = _core.GpuPasses(packed, pages=40, step_tokens=160)
        text, other = Text(shape, experts, tokens, range(5), 2), Text(shape, experts, tokens, range(9, 14), 3)
        expected, _ = plain.run([text.piece(0, tokens)])
        whole, _ = graphs.run([text.piece(0, tokens)])
        kind = f"width {shape['width']}, {experts} experts: "
        made.compare(kind + "graphs against plain operators", whole, expected, TOLERANCE)
        stepwise = in_pieces(plain, text, None, 1, tokens)
        made.compare(
            kind + "decode by graphs against stepwise operators",
            in_pieces(graphs, text, None, 1, tokens),
            stepwise,
            TOLERANCE,
        )
        text.pages = np.array([31, 4, 17, 8, 25], np.int32)
        limit = 0.0 if device == "cuda" else 1e-5
        for size in (1, 3, 7, 16, 33):  # 1, 4, 8, 16 and 32 rows and one of the next group, padded
            for beside in (None, other):
                name = f"pieces of {size}" + (" beside another text" if beside else "")
                made.compare(kind + name, in_pieces(graphs, text, beside, size, tokens), whole, limit)
        greedy, _ = graphs.greedy([text.piece(0, tokens)])
        made.equal(kind + "greedy ids", greedy[:, 0], whole.argmax(1))
        before = graphs.host_waits
        graphs.run([text.piece(tokens - 1, 1)])
        made.equal(kind + "host waits of a step", [graphs.host_waits - before], [1])
        if experts:
            continue
        library = _core.GpuModel(weights, library=True)
        for exact in (True, False):
            passes = _core.GpuPasses(library, pages=40, step_tokens=160, exact=exact, library=True)
            run = passes.run([text.piece(0, tokens)])[0]
            made.compare(f"{kind}library products, exact {exact}: against plain operators", run, expected, TOLERANCE)


def bandwidth():
    """Bytes per second of the device: a copy (read and written) and a sum (read)."""
    source = torch.ones(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)

    def timed(call, moved):
        for _ in range(3):
            call()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(10):
            call()
        last.record()
        last.synchronize()
        return 10 * moved / (first.elapsed_time(last) * 1e-3)

    bytes_ = source.numel() * 4
    return {"copy": timed(lambda: target.copy_(source), 2 * bytes_), "read": timed(lambda: source.sum(), bytes_)}


def step_of(batch, distinct, experts):
    """Runs of one decode step: `batch` texts of CONTEXT tokens with this many experts between them."""
    generator = np.random.default_rng(batch)
    runs, each = [], CONTEXT // PAGE
    for row in range(batch):
        chosen = np.array([row % distinct], np.uint8) if experts > 1 else NO_EXPERTS
        pages = np.arange(each, dtype=np.int32) + each * row
        ids = generator.integers(0, LARGE["vocab"], 1, dtype=np.int32)
        runs.append(_core.PassRun(ids, chosen, CONTEXT - 1, pages, 0))
    return runs


class Side:
    """One model and one kind of step."""

    def __init__(self, passes, batch, distinct, experts, facts):
        self.passes, self.facts = passes, facts
        self.runs = step_of(batch, distinct, experts)
        self.facts |= {"batch": batch, "distinct_experts": distinct}
        self.device_ms, self.waits, self.cost = [], [], None

    def block(self, steps):
        """Milliseconds per step as the engine sees it."""
        self.passes.greedy(self.runs)
        before, seconds = self.passes.host_waits, 0.0
        for _ in range(steps):
            _, self.cost = self.passes.greedy(self.runs)
            seconds += self.cost["seconds"]
        self.waits.append((self.passes.host_waits - before) / steps)
        self.device_ms.append(self.passes.device_milliseconds(steps))
        return seconds * 1e3 / steps

    def row(self, times, rates):
        step, device = float(np.median(times)), float(np.median(self.device_ms))
        cache = self.facts["batch"] * CONTEXT * LARGE["layers"] * 2 * LARGE["width"] * 2
        read = self.cost["weight_bytes"] + cache
        return self.facts | {
            "step_ms": step,
            "device_ms": device,
            "overhead_ms": step - device,
            "overhead_share": (step - device) / step,
            "weight_bytes": self.cost["weight_bytes"],
            "ffn_bytes": self.cost["ffn_bytes"],
            "cache_bytes": cache,
            "share_of_copy_bandwidth": read / (step * 1e-3) / rates["copy"],
            "share_of_read_bandwidth": read / (step * 1e-3) / rates["read"],
            "weights_share_of_read_bandwidth": self.cost["weight_bytes"] / (step * 1e-3) / rates["read"],
            "host_waits_per_step": float(np.mean(self.waits)),
            "spread": spread(times),
            "tokens_per_second": self.facts["batch"] / (step * 1e-3),
        }


def models(path):
    """Packed models by share of the FFN, with the facts of their masks."""
    weights = _core.GpuWeights(**LARGE)
    for share in SHARES:
        if share == 1.0:
            facts = {"masks": "dense", "experts": 0, "share": 1.0, "overlap": None}
            yield _core.GpuModel(weights, library=True), 1, facts
            continue
        if path and share == 0.5:
            (layers, experts), origin = resampled(path, LARGE, 7), "resampled"
        else:
            layers, experts, origin = synthetic(LARGE, EXPERTS, share, 7), EXPERTS, "synthetic"
        kept, overlap = overlap_of(layers, experts)
        facts = {"masks": origin, "experts": experts, "share": kept, "overlap": overlap}
        yield _core.GpuModel(weights, experts, layers), experts, facts


def measured(arguments):
    """All sides in turns."""
    sides = {}
    pages = max(BATCHES) * CONTEXT // PAGE
    for packed, experts, facts in models(arguments.signatures):
        programs = [("kernels", True)] + ([("library", True), ("library", False)] if experts == 1 else [])
        for program, exact in programs:
            form = {"exact": exact, "library": program == "library"}
            passes = _core.GpuPasses(packed, pages=pages, step_tokens=max(BATCHES), **form)
            passes.fill_pages()
            for batch in BATCHES:
                for distinct in sorted({min(n, experts, batch) for n in (1, 2, EXPERTS)}):
                    name = f"{facts['share']:.2f} {program} exact={exact} B={batch} E={distinct}"
                    known = facts | {"program": program, "exact": exact}
                    sides[name] = Side(passes, batch, distinct, experts, known)
    rates = [bandwidth()]
    times = interleave({n: lambda s=s: s.block(arguments.steps) for n, s in sides.items()}, arguments.blocks)
    rates.append(bandwidth())
    rate = {kind: float(np.median([r[kind] for r in rates])) for kind in rates[0]}
    rows = [{"name": n} | s.row(times[n], rate) for n, s in sides.items()]
    for row in rows:
        library = [r for r in rows if r["program"] == "library" and r["batch"] == row["batch"]]
        row["times_as_fast_as_library"] = min(r["step_ms"] for r in library) / row["step_ms"]
    return {"bandwidth": rate, "rows": rows}


def profile():
    """Prints the device time of each kernel of a step with one expert of a half, at the smallest and largest batch."""
    packed, experts, _ = next(models(None))
    passes = _core.GpuPasses(packed, pages=max(BATCHES) * CONTEXT // PAGE, step_tokens=max(BATCHES))
    passes.fill_pages()
    for batch in (min(BATCHES), max(BATCHES)):
        runs = step_of(batch, 1, experts)
        passes.greedy(runs)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            passes.greedy(runs)
        print(f"batch {batch}")
        print(recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=70))


def write_table(result, path):
    """The rows as Markdown beside the JSON."""
    about = ", ".join(f"{key} {value}" for key, value in result["circumstances"].items())
    rate = {kind: f"{value / 1e12:.2f} TB/s" for kind, value in result["bandwidth"].items()}
    text = f"Generated by `benchmarks/serve/gpu.py`: {about}. Copy {rate['copy']}, read {rate['read']}.\n\n"
    page = path.with_suffix(".md")
    before = page.read_text() if page.exists() else ""
    hand = before[before.index(BY_HAND) :] if BY_HAND in before else BY_HAND + "\n"
    page.write_text(text + markdown_table(result["rows"], COLUMNS) + "\n" + hand)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--signatures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    checked = check(arguments.device)
    result = {"circumstances": circumstances(), "check": checked.found, "passed": not checked.failed}
    save(arguments.output, result)
    if checked.failed or arguments.check_only or arguments.device == "cpu":
        return 1 if checked.failed else 0
    if arguments.profile:
        profile()
        return 0
    result |= {"shape": LARGE, "context": CONTEXT} | measured(arguments)
    save(arguments.output, result)
    write_table(result, arguments.output)
    for row in result["rows"]:
        print(json.dumps(row))
    print(json.dumps(result["bandwidth"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
