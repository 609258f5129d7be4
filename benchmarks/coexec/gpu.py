"""GPU figures of co-execution, written row by row so that an interrupted run can go on.

    python benchmarks/coexec/gpu.py --budget-s 540 --output docs/results/coexec_h100.json

All sides of a row run in turns in this process; timing under default kernels, `bitwise` under
math attention and deterministic cuDNN on both sides.
"""

import argparse
import gc
import json
import pathlib
import random
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "examples")]

import gpu_exact  # noqa: E402
import measure  # noqa: E402
import outrider  # noqa: E402
import torch  # noqa: E402
from gpu_programs import WORKLOADS, Training  # noqa: E402
from outrider import _runtime  # noqa: E402

_KERNELS = "timing: default kernels on all sides; bitwise: math attention and deterministic cuDNN on both sides"
BLOCK_STEPS = 40
WARM_UP_STEPS = 20
FETCHES = (10, 1)
COLUMNS = [
    "program",
    "batch",
    "optimizer",
    "fetch_every",
    "eager_ms",
    "compile_default_ms",
    "reduce_overhead_ms",
    "compile_first_step_s",
    "coexec_ms",
    "host_ms",
    "recorded_ms",
    "recorded_ratio",
    "never_stable_ratio",
    "peak_mem_ratio",
    "first_covered_step",
    "capture_ms",
    "bitwise",
    "covered_share",
    "reps",
    "spread",
]


def clean():
    """Gives memory back between measurements."""
    gc.collect()
    torch.cuda.empty_cache()


class Side:
    """One way to run a workload: how its step is called, and how long a block takes."""

    def __init__(self, workload, decorate=lambda model: model, coexecuted=False):
        self.training = Training(workload, decorate)
        self.coexecuted = coexecuted
        self.step = outrider.coexec(self.training.step) if coexecuted else self.training.step
        self.count = 0

    def timed_steps(self, count):
        """Milliseconds of each step, the GPU drained after each."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self.step(self.count)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
            self.count += 1
        return times

    def block(self, fetch_every):
        """Milliseconds per step of a block in which the loss is read every `fetch_every` steps."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for k in range(BLOCK_STEPS):
            loss = self.step(self.count)
            self.count += 1
            if k % fetch_every == fetch_every - 1:
                loss.item()
        torch.cuda.synchronize()
        elapsed_ms = (time.perf_counter() - start) * 1e3 / BLOCK_STEPS
        if self.coexecuted:
            _runtime.core().leave()
        return elapsed_ms


def warm_up(eager, coexecuted):
    """Runs the first steps one by one, in turns; returns what they say about recording and capture."""
    outrider.clear()
    times = []
    for _ in range(WARM_UP_STEPS):
        beside = eager.timed_steps(1)[0]
        times.append((coexecuted.timed_steps(1)[0], beside))
        _runtime.core().leave()
    rows = outrider.report()
    recorded = [pair for pair, row in zip(times[1:], rows[1:], strict=True) if row["recorded"]]
    recorded_ms, eager_ms = (statistics.median(side) for side in zip(*recorded, strict=True)) if recorded else (None, 1)
    spans = _runtime.core().timeline()
    captures_us = sum(span["dur_us"] for span in spans if span["kind"] == "capture")
    return {
        "recorded_ms": recorded_ms,
        "recorded_ratio": recorded_ms / eager_ms if recorded else None,
        "first_covered_step": measure.first_covered_step(rows),
        "capture_ms": captures_us / 1e3,
    }


def compiled_sides(workload):
    """The torch.compile sides, each with the seconds of its first step; a failure becomes its message."""
    sides, first_steps, failures = {}, {}, {}
    for name, mode in (("compile_default", None), ("reduce_overhead", "reduce-overhead")):
        torch._dynamo.reset()
        side = Side(workload, lambda model, mode=mode: torch.compile(model, mode=mode))
        try:
            first_steps[name] = side.timed_steps(1)[0] / 1e3
            side.timed_steps(WARM_UP_STEPS)
            sides[name] = side
        except Exception as error:
            failures[name] = str(error)[:200]
    return sides, first_steps, failures


def peak_memory(workload, coexecuted):
    """Peak allocated bytes of one side alone: steps in a row, then steps of which each loss is read."""
    clean()
    torch.cuda.reset_peak_memory_stats()
    _runtime.core().reset()
    side = Side(workload, coexecuted=coexecuted)
    side.timed_steps(WARM_UP_STEPS)
    side.block(1)
    outrider.flush()
    peak = torch.cuda.max_memory_allocated()
    _runtime.core().leave()
    del side
    _runtime.core().reset()
    clean()
    return peak


def never_stable_ratio(workload):
    """Co-executed against eager when every step takes a new path; median over interleaved blocks."""
    generator = random.Random(0)
    operations = (torch.sin, torch.cos, torch.tanh, torch.abs, torch.neg, torch.sigmoid)
    scratch = torch.linspace(-1, 1, 64, device="cuda")

    def restless(training):
        def step(i):
            x = scratch
            for _ in range(12):
                x = generator.choice(operations)(x)
            return training.step(i) + 0 * x.sum()

        return step

    sides = {}
    for name, coexecuted in (("eager", False), ("coexec", True)):
        side = Side(workload)
        step = restless(side.training)
        side.step, side.coexecuted = (outrider.coexec(step) if coexecuted else step), coexecuted
        side.timed_steps(5)
        sides[name] = side
    times = measure.interleave({name: lambda side=side: side.block(10) for name, side in sides.items()}, 5)
    _runtime.core().reset()
    return statistics.median(times["coexec"]) / statistics.median(times["eager"])


def measure_workload(workload, blocks, with_compile):
    """Both rows of a workload: loss read every 10 steps and every step."""
    exact = gpu_exact.compare(workload)
    memory_ratio = peak_memory(workload, True) / peak_memory(workload, False)
    restless = never_stable_ratio(workload)
    clean()
    _runtime.core().reset()
    sides = {"eager": Side(workload), "coexec": Side(workload, coexecuted=True)}
    sides["eager"].timed_steps(WARM_UP_STEPS)
    warm = warm_up(sides["eager"], sides["coexec"])
    compiled, first_steps, failures = compiled_sides(workload) if with_compile else ({}, {}, {})
    sides |= compiled
    for side in sides.values():  # torch.compile has changed process-wide flags meanwhile
        side.timed_steps(WARM_UP_STEPS)
        _runtime.core().leave()
    rows = []
    for fetch_every in FETCHES:
        outrider.clear()
        turns = {name: lambda side=side, every=fetch_every: side.block(every) for name, side in sides.items()}
        times = measure.interleave(turns, blocks)
        report = outrider.report()
        middle = {name: statistics.median(values) for name, values in times.items()}
        ratio, low, high = measure.ratio_with_interval(times["eager"], times["coexec"])
        row = dict.fromkeys(COLUMNS) | warm
        row |= {
            "program": workload.program,
            "batch": workload.batch,
            "optimizer": workload.optimizer,
            "fetch_every": fetch_every,
            "eager_ms": middle["eager"],
            "compile_default_ms": middle.get("compile_default"),
            "reduce_overhead_ms": middle.get("reduce_overhead"),
            "compile_first_step_s": max(first_steps.values()) if first_steps else None,
            "coexec_ms": middle["coexec"],
            "host_ms": statistics.median(r["host_us"] - r["host_wait_us"] for r in report) / 1e3,
            "never_stable_ratio": restless,
            "peak_mem_ratio": memory_ratio,
            "bitwise": exact["bitwise"],
            "covered_share": measure.covered_share(report),
            "reps": blocks,
            "spread": max(measure.spread(times["eager"]), measure.spread(times["coexec"])),
        }
        detail = {"speed_up": ratio, "interval": [low, high], "compile_failures": failures, **exact}
        rows.append((row, detail))
    del sides, compiled
    torch._dynamo.reset()
    _runtime.core().reset()
    clean()
    return rows


def load(path):
    """The result so far: an interrupted run goes on where it stopped."""
    if path.exists():
        return json.loads(path.read_text())
    return {"circumstances": measure.circumstances(), "kernels": _KERNELS, "rows": [], "details": []}


def main():
    """Measures what is missing, one workload after another, while the time budget lasts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=7, help="interleaved blocks per side, 7 at least")
    parser.add_argument("--budget-s", type=float, default=540.0, help="start no workload after this many seconds")
    parser.add_argument("--per-workload-s", type=float, default=150.0, help="time a workload is expected to take")
    parser.add_argument(
        "--skip", default="none", help="leave out workloads whose program-batch-optimizer contains this"
    )
    parser.add_argument("--only", default="", help="run workloads whose program-batch-optimizer contains this")
    parser.add_argument("--no-compile", action="store_true", help="leave the torch.compile columns empty")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/results/coexec_h100.json")
    arguments = parser.parse_args()
    if arguments.blocks < 7:
        parser.error("--blocks: an interval needs 7 blocks at least")
    started = time.perf_counter()
    result = load(arguments.output)
    done = {(row["program"], row["batch"], row["optimizer"]) for row in result["rows"]}
    for workload in WORKLOADS:
        key = (workload.program, workload.batch, workload.optimizer)
        if key in done or arguments.only not in "-".join(key) or arguments.skip in "-".join(key):
            continue
        if time.perf_counter() - started + arguments.per_workload_s > arguments.budget_s:
            print(f"no time left for {key}; run again to go on")
            break
        try:
            measured = measure_workload(workload, arguments.blocks, not arguments.no_compile)
        except Exception as error:  # the other workloads still count
            print(f"{key} failed: {type(error).__name__}: {error}", flush=True)
            _runtime.core().reset()
            clean()
            continue
        for row, detail in measured:
            result["rows"].append(row)
            result["details"].append({name: row[name] for name in COLUMNS[:4]} | detail)
            print(row, detail, flush=True)
        measure.save(arguments.output, result)
    about = ", ".join(f"{key} {value}" for key, value in result["circumstances"].items())
    text = f"Generated by `benchmarks/coexec/gpu.py`: {about}.\n\n{measure.markdown_table(result['rows'], COLUMNS)}"
    if result.get("notes"):
        text += "\n" + "".join(f"- {note}\n" for note in result["notes"])
    arguments.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
