"""Tuning steps co-executed and eager, side by side: python benchmarks/refactor/coexec_tuning.py [--blocks 9]

Two trainers of the same model, seed and texts take turns in one process; behind the last block their weights are
compared bit for bit. Writes docs/results/refactor_coexec_cpu.json and the same as a table, refactor_coexec_cpu.md.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benchmarks/coexec"), str(ROOT / "benchmarks/refactor")]

import measure  # noqa: E402
import throughput  # noqa: E402
import torch  # noqa: E402
from outrider import _core  # noqa: E402
from outrider.refactor import smoke  # noqa: E402
from outrider.refactor.budgets import BUDGETS  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

SMOKE_SHAPE = {
    "d": smoke.CONFIG["hidden_size"],
    "ffn": smoke.CONFIG["intermediate_size"],
    "layers": smoke.CONFIG["num_hidden_layers"],
    "heads": smoke.CONFIG["num_attention_heads"],
    "kv": smoke.CONFIG["num_key_value_heads"],
    "vocab": smoke.CONFIG["vocab_size"],
    "tied": smoke.CONFIG["tie_word_embeddings"],
}
SMALL_SHAPE = {"d": 32, "ffn": 88, "layers": 3, "heads": 4, "kv": 2, "vocab": 96, "tied": True}
SMALL_STEP = {"batch": 2, "micro_batch": 2, "sequence": 16, "chunk": 32, "router.width": 32}
# (name, shape, changes to the budget cpu-smoke, steps in a block)
MODELS = [
    ("small", SMALL_SHAPE, SMALL_STEP, 100),
    ("small, bfloat16", SMALL_SHAPE, SMALL_STEP | {"dtype": "bfloat16"}, 100),
    ("cpu-smoke", SMOKE_SHAPE, {}, 10),
]
STAGES = ("router", "expert")
WARM_UP_STEPS = 10
KERNEL_BOUND = 0.9  # of a step: from here on kernels are what it takes
COLUMNS = ["program", "stage", "threads", "eager_tokens_per_s", "coexec_tokens_per_s", "speed_up", "interval", "spread"]
COLUMNS += ["step_ms", "host_ms", "runner_ms", "covered_share", "lane", "weights_equal", "limit"]


class Side:
    """One trainer and its place in the stages."""

    def __init__(self, options, coexec):
        self.bench = _core.Workbench.open(json.dumps(options | {"coexec": coexec}))
        self.bench.make_experts()
        self.facts = []

    def run(self, stage, steps, all_steps):
        """Milliseconds per step, pending work included."""
        done = sum(1 for name, _ in self.facts if name == stage)
        begin = time.perf_counter()
        for step in range(done, done + steps):
            facts = self.bench.step(stage, 0, step, all_steps)
            self.facts.append((stage, facts["loss"]))
        _core.leave()  # completes what is pending; the other side runs without hooks
        return (time.perf_counter() - begin) / steps * 1e3

    def weights(self, folder):
        path = folder / "state.safetensors"
        self.bench.save(str(path))
        return load_file(path)


def limit_of(row):
    """What a step takes when it is co-executed, in words."""
    if row["lane"] != "outer":
        return "inner lane: " + (row["notes"] or "no reason given")
    kernels, host = row["runner_ms"] / row["step_ms"], row["host_ms"] / row["step_ms"]
    if kernels >= KERNEL_BOUND:
        return f"kernels: {kernels:.0%} of a step"
    return f"kernels {kernels:.0%}, host {host:.0%} of a step, the rest one waits for the other"


def measure_stage(name, stage, sides, threads, tokens, block_steps, blocks):
    """One row of the table."""
    all_steps = WARM_UP_STEPS + blocks * block_steps
    for side in sides.values():
        side.run(stage, WARM_UP_STEPS, all_steps)
    _core.clear_rows()
    runs = {key: functools.partial(side.run, stage, block_steps, all_steps) for key, side in sides.items()}
    times = measure.interleave(runs, blocks)
    late = _core.rows()
    ratio, low, high = measure.ratio_with_interval(times["eager"], times["coexec"])
    row = {
        "program": name,
        "stage": stage,
        "threads": threads,
        "eager_tokens_per_s": tokens / statistics.median(times["eager"]) * 1e3,
        "coexec_tokens_per_s": tokens / statistics.median(times["coexec"]) * 1e3,
        "speed_up": ratio,
        "interval": [low, high],
        "spread": max(measure.spread(times["eager"]), measure.spread(times["coexec"])),
        "step_ms": statistics.median(times["coexec"]),
        "host_ms": statistics.median(row["host_us"] - row["host_wait_us"] for row in late) / 1e3,
        "runner_ms": statistics.median(row["runner_busy_us"] for row in late) / 1e3,
        "covered_share": measure.covered_share(late),
        "lane": statistics.mode(row["lane"] for row in late),
        "notes": statistics.mode(row["note"] for row in late),
        "reps": blocks,
        "block_steps": block_steps,
        "times_ms": times,
    }
    return row | {"limit": limit_of(row)}


def measure_model(name, shape, changes, block_steps, threads, blocks):
    """A row per stage; both sides end with the same weights, or with the row saying so."""
    torch.set_num_threads(threads)
    options = BUDGETS["cpu-smoke"] | {"experts.count": 4, "calibration.samples": 2} | changes
    with tempfile.TemporaryDirectory() as text:
        folder = pathlib.Path(text)
        throughput.make_model(folder / "model", shape, "cpu")
        throughput.make_data(folder / "data", shape["vocab"], 20_000)
        options |= {"model": str(folder / "model"), "data": str(folder / "data")}
        sides = {"eager": Side(options, False), "coexec": Side(options, True)}
        tokens = options["batch"] * options["sequence"]
        rows = [measure_stage(name, stage, sides, threads, tokens, block_steps, blocks) for stage in STAGES]
        eager, coexec = (side.weights(folder) for side in sides.values())
    _core.leave()
    equal = eager.keys() == coexec.keys() and all(torch.equal(eager[key], coexec[key]) for key in eager)
    equal = equal and sides["eager"].facts == sides["coexec"].facts
    return [row | {"weights_equal": equal} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=9, help="interleaved blocks per side, 7 at least")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/results/refactor_coexec_cpu.json")
    arguments = parser.parse_args()
    if arguments.blocks < 7:
        parser.error("--blocks: an interval needs 7 blocks at least")
    circumstances = measure.circumstances()
    circumstances.pop("intra_op_threads", None)  # a column
    result = {"circumstances": circumstances, "rows": []}
    for threads in sorted({1, os.cpu_count() or 1}):
        for name, shape, changes, block_steps in MODELS:
            for row in measure_model(name, shape, changes, block_steps, threads, arguments.blocks):
                result["rows"].append(row)
                print(json.dumps({key: row[key] for key in COLUMNS}), flush=True)
    measure.save(arguments.output, result)
    about = ", ".join(f"{key} {value}" for key, value in circumstances.items())
    table = measure.markdown_table(result["rows"], COLUMNS)
    text = (
        f"Generated by `benchmarks/refactor/coexec_tuning.py`: {about}. `step_ms`, `host_ms` and `runner_ms` are those "
        f"of a co-executed step: where kernels (`runner_ms`) take all of it, there is nothing to hide.\n\n{table}"
    )
    arguments.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
