"""Milliseconds that a step waits for its router: on the device, and on the processor beside it.

    PYTHONPATH=python python benchmarks/serve/router.py --output FILE [--threads N,N] [--blocks 7]

Weights are random: cost does not depend on their values. A row is what a step routes: one written token for each of
`texts` texts, or a chunk of one prompt, behind `behind` tokens of the text. Sides run in turns; before a row is
measured their logits are compared. Between calls a side rests for as long as a step of the backbone takes: threads of
the processor sleep then, as they do in a server.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from outrider import _core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))
from measure import circumstances, interleave, markdown_table, save, spread

VOCAB, CONTEXT, PAGE, EXPERTS, HEADS = 65536, 8192, 16, 7, 4
WIDTHS = (256, 512)  # of the budgets `outrider` and of the preset `readme`
STEPS = [(1, 1, 900), (8, 1, 900), (22, 1, 900), (32, 1, 900), (1, 512, 0), (1, 512, 900), (1, 512, 7000)]
PASS_S, CALLS = 0.014, 12
TOLERANCE = 1e-3
COLUMNS = ["width", "texts", "tokens", "behind", "side", "ms", "spread", "times_as_fast"]


def runs_of(texts, tokens, behind):
    each = -(-(behind + tokens) // PAGE)
    draw = np.random.default_rng(texts).integers
    pages = [np.arange(each, dtype=np.int32) + each * text for text in range(texts)]
    before = [(draw(0, VOCAB, behind, dtype=np.int32), 0, own) for own in pages] if behind else []
    return before, [(draw(0, VOCAB, tokens, dtype=np.int32), behind, own) for own in pages]


def side(router, runs):
    def block():
        taken = []
        for _ in range(CALLS):
            time.sleep(PASS_S)
            taken.append(router.run(runs)[1])
        return float(np.median(taken)) * 1e3

    return block


def measured(width, sides, blocks):
    pages = max(texts * -(-(behind + tokens) // PAGE) for texts, tokens, behind in STEPS)
    shape = {"width": width, "heads": HEADS, "experts": EXPERTS, "vocab": VOCAB, "context": CONTEXT, "pages": pages}
    routers = {name: _core.RouterPasses(device=device, threads=threads, **shape) for name, device, threads in sides}
    for texts, tokens, behind in STEPS:
        before, runs = runs_of(texts, tokens, behind)
        logits = []
        for router in routers.values():
            if before:
                router.run(before)
            logits.append(router.run(runs)[0])
        worst = float(np.max([np.abs(other - logits[0]).max() for other in logits]) / np.abs(logits[0]).max())
        if not worst < TOLERANCE:
            raise SystemExit(f"sides differ by {worst:.3g} of the largest logit, expected less than {TOLERANCE}")
        times = interleave({name: side(router, runs) for name, router in routers.items()}, blocks)
        base = float(np.median(times[sides[-1][0]]))
        for name, found in times.items():
            middle = float(np.median(found))
            yield {"width": width, "texts": texts, "tokens": tokens, "behind": behind, "side": name, "ms": middle,
                   "spread": spread(found), "times_as_fast": base / middle, "difference": worst}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda", help="of the first side")
    parser.add_argument("--threads", default="12", help="of the processor's sides, commas between")
    parser.add_argument("--blocks", type=int, default=7)
    options = parser.parse_args()
    threads = [int(number) for number in options.threads.split(",")]
    sides = [(options.device, options.device, max(threads))]
    sides += [(f"processor, {number} threads", "cpu", number) for number in threads]
    rows = []
    for width in WIDTHS:
        for row in measured(width, sides, options.blocks):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            save(options.output, {"benchmark": "serve_router", "circumstances": circumstances(), "measured": rows})
    print(markdown_table(rows, COLUMNS))


if __name__ == "__main__":
    main()
