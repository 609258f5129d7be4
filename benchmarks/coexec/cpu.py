"""CPU figures of co-execution: python benchmarks/coexec/cpu.py [--blocks 9]

Writes docs/results/coexec_cpu.json and the same as a table, docs/results/coexec_cpu.md.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "examples")]

import cpu_micro  # noqa: E402
import measure  # noqa: E402
import outrider  # noqa: E402
import torch  # noqa: E402
from outrider import _runtime  # noqa: E402
from outrider.demo.twins import make_sides  # noqa: E402

from coexec import digits_cnn, text_gpt  # noqa: E402

WARM_UP_STEPS = 20
BLOCK_STEPS = 30
GPT_SMALL = {"width": 64, "layers": 2, "lengths": (32, 32), "batch": 4, "dropout": 0.0, "layer_drop": 0.0}
GPT_WIDE = {"width": 256, "layers": 4, "lengths": (64, 64), "batch": 4, "dropout": 0.0, "layer_drop": 0.0}
CNN = {"milestones": ()}

# (name, kind of limit, function that builds it from log_every, optimizer)
PROGRAMS = [
    ("gpt-2x64", "launch", functools.partial(text_gpt.build, 0, **GPT_SMALL), "sgd"),
    ("gpt-2x64", "launch", functools.partial(text_gpt.build, 0, **GPT_SMALL), "adamw"),
    ("gpt-2x64", "launch", functools.partial(text_gpt.build, 0, **GPT_SMALL), "adamw_foreach"),
    ("gpt-2x64", "launch", functools.partial(text_gpt.build, 0, **GPT_SMALL), "adamw_fused"),
    ("digits_cnn", "launch", functools.partial(digits_cnn.build, 0, **CNN), "sgd"),
    ("digits_cnn", "launch", functools.partial(digits_cnn.build, 0, **CNN), "adamw"),
    ("gpt-4x256", "compute", functools.partial(text_gpt.build, 0, **GPT_WIDE), "sgd"),
    ("gpt-4x256", "compute", functools.partial(text_gpt.build, 0, **GPT_WIDE), "adamw"),
]

# Programs whose recorded steps are timed: name -> function that makes a step
RECORDED = {
    "gpt": lambda: text_gpt.build(0, **GPT_SMALL, optimizer="adamw", log_every=10).step,
    "digits_cnn": lambda: digits_cnn.build(0, **CNN, optimizer="sgd", log_every=10).step,
}


def timed_block(side):
    """Runs one block and returns its milliseconds per step, pending work included."""
    side.run_block(BLOCK_STEPS)
    return side.step_ms[-1]


def measure_program(name, limit, build, optimizer, fetch_every, blocks):
    """One row: eager and co-executed in turns, in one process, on the same random numbers."""
    _runtime.core().reset()
    outrider.clear()
    eager, coexecuted = make_sides(functools.partial(build, optimizer=optimizer, log_every=fetch_every))
    for side in (eager, coexecuted):
        side.run_block(WARM_UP_STEPS)
    sides = {"eager": functools.partial(timed_block, eager), "coexec": functools.partial(timed_block, coexecuted)}
    times = measure.interleave(sides, blocks)
    rows = outrider.report()
    late = rows[WARM_UP_STEPS:]
    ratio, low, high = measure.ratio_with_interval(times["eager"], times["coexec"])
    return {
        "program": name,
        "limit": limit,
        "optimizer": optimizer,
        "fetch_every": fetch_every,
        "eager_ms": statistics.median(times["eager"]),
        "coexec_ms": statistics.median(times["coexec"]),
        "speed_up": ratio,
        "interval": [low, high],
        "host_ms": statistics.median(row["host_us"] - row["host_wait_us"] for row in late) / 1e3,
        "runner_ms": statistics.median(row["runner_busy_us"] for row in late) / 1e3,
        "covered_share": measure.covered_share(late),
        "lane": statistics.mode(row["lane"] for row in late),
        "first_covered_step": measure.first_covered_step(rows),
        "losses_equal": eager.losses == coexecuted.losses,
        "reps": blocks,
        "block_steps": BLOCK_STEPS,
        "spread": max(measure.spread(times["eager"]), measure.spread(times["coexec"])),
    }


def main():
    """Measures everything and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=9, help="interleaved blocks per side, 7 at least")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/results/coexec_cpu.json")
    arguments = parser.parse_args()
    if arguments.blocks < 7:
        parser.error("--blocks: an interval needs 7 blocks at least")
    torch.set_num_threads(1)
    started = time.perf_counter()
    result = {"circumstances": measure.circumstances(), "rows": [], "micro": {}}
    for name, limit, build, optimizer in PROGRAMS:
        for fetch_every in (10, 1):
            row = measure_program(name, limit, build, optimizer, fetch_every, arguments.blocks)
            result["rows"].append(row)
            print(
                f"{name} {optimizer} fetch every {fetch_every}: eager {row['eager_ms']:.2f} ms, "
                f"coexec {row['coexec_ms']:.2f} ms, {row['speed_up']:.2f}x "
                f"[{row['interval'][0]:.2f}, {row['interval'][1]:.2f}], "
                f"covered {row['covered_share']:.3f} ({row['lane']})",
                flush=True,
            )
    result["micro"] = cpu_micro.measure_all(RECORDED)
    result["wall_s"] = time.perf_counter() - started
    measure.save(arguments.output, result)
    columns = ["program", "limit", "optimizer", "fetch_every", "eager_ms", "coexec_ms", "speed_up", "interval"]
    columns += ["host_ms", "runner_ms", "covered_share", "lane", "losses_equal", "reps", "spread"]
    micro = [{"figure": key, "value": value} for key, value in result["micro"].items()]
    about = ", ".join(f"{key} {value}" for key, value in result["circumstances"].items())
    tables = measure.markdown_table(result["rows"], columns) + "\n" + measure.markdown_table(micro, ["figure", "value"])
    text = f"Generated by `benchmarks/coexec/cpu.py`: {about}.\n\n{tables}"
    arguments.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
