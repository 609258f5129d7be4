"""Interleaved timing, bootstrap intervals, and the description of machine and versions."""

import datetime
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESAMPLES = 2000


def interleave(sides, blocks):
    """Runs the sides' blocks in turns, A B A B; returns side name -> milliseconds per step, one per block.

    `sides`: name -> function that runs one block and returns its milliseconds per step. The order
    is turned round in every second round, so that neither side always runs on the warmer machine.
    """
    times = {name: [] for name in sides}
    for block in range(blocks):
        names = list(sides) if block % 2 == 0 else list(reversed(sides))
        for name in names:
            times[name].append(sides[name]())
    return times


def ratio_with_interval(base, other):
    """Returns (base / other of the medians, low, high): a 95 % bootstrap interval over paired blocks."""
    generator = random.Random(0)
    count = len(base)
    ratios = []
    for _ in range(RESAMPLES):
        chosen = [generator.randrange(count) for _ in range(count)]
        ratios.append(statistics.median(base[k] for k in chosen) / statistics.median(other[k] for k in chosen))
    ratios.sort()
    middle = statistics.median(base) / statistics.median(other)
    return middle, ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES)]


def spread(times):
    """Interquartile range as a share of the median."""
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / statistics.median(times)


def covered_share(rows):
    """Share of device operations that the graph runner ran."""
    return sum(row["covered_ops"] for row in rows) / max(1, sum(row["device_ops"] for row in rows))


def first_covered_step(rows):
    """Number of the first step with covered operations, from 1; None if there is none."""
    return next((number for number, row in enumerate(rows, 1) if row["covered_ops"] > 0), None)


def _processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def circumstances():
    """Machine, versions, commit and date: what a reader needs to judge a figure."""
    found = {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "intra_op_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name(0)
        found["cuda"] = torch.version.cuda
    return found


def save(path, result):
    """Writes a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def markdown_table(rows, columns):
    """Rows (dicts) as a Markdown table; floats get three significant digits."""

    def text(value):
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        if isinstance(value, (list, tuple)):
            return " .. ".join(text(part) for part in value)
        return "" if value is None else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(text(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"
