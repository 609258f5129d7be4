"""The co-execution demo: three unedited programs, checked bit for bit while they run."""

import functools
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import outrider
from outrider import _runtime
from outrider.demo import picture
from outrider.demo.twins import Side, make_sides

BLOCK = 10
WARM_UP_STEPS = 20

# What runs: title -> (example module, configuration).
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits_cnn": ("digits_cnn", {"optimizer": "adamw"}),
    "text_gpt": ("text_gpt", {}),
    "hf_gpt2": ("hf_gpt2", {}),
}


@dataclass
class Result:
    """One program's outcome; times are medians over blocks after warm-up, milliseconds a step."""

    name: str
    eager: Side
    coexecuted: Side
    rows: list[dict[str, Any]]
    unequal: list[str]

    @property
    def eager_ms(self) -> float:
        """Eager milliseconds per step."""
        return statistics.median(self.eager.step_ms[WARM_UP_STEPS:])

    @property
    def coexec_ms(self) -> float:
        """Co-executed milliseconds per step."""
        return statistics.median(self.coexecuted.step_ms[WARM_UP_STEPS:])

    @property
    def covered_share(self) -> float:
        """Share of device operations run by the graph runner after warm-up."""
        late = self.rows[WARM_UP_STEPS:]
        return sum(row["covered_ops"] for row in late) / max(1, sum(row["device_ops"] for row in late))

    @property
    def overlap_ms(self) -> float:
        """Milliseconds per step in which host and graph runner worked at the same time, at least."""
        late = self.rows[WARM_UP_STEPS:]
        shared_us = (row["runner_busy_us"] - row["host_wait_us"] for row in late)
        return sum(max(0.0, value) for value in shared_us) / max(1, len(late)) / 1e3


def find_programs() -> None:
    """Makes the example programs importable; they live in the source tree."""
    examples = Path(__file__).resolve().parents[3] / "examples"
    if not (examples / "coexec" / "program.py").is_file():
        sys.exit(f"The demo needs the source tree: there are no example programs in {examples}.")
    sys.path.insert(0, str(examples))


def builder(name: str) -> Callable[[], Any]:
    """Returns a function that builds the named program from seed 0."""
    module, config = PROGRAMS[name]
    return functools.partial(importlib.import_module(f"coexec.{module}").build, 0, **config)


def run_program(name: str, steps: int, console: Console) -> Result:
    """Runs both copies of a program in turns of ten steps and compares every loss as it appears."""
    _runtime.core().reset()
    outrider.clear()
    eager, coexecuted = make_sides(builder(name))
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[verdict]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, verdict="")
        for first in range(0, steps, BLOCK):
            count = min(BLOCK, steps - first)
            for side in (eager, coexecuted) if first // BLOCK % 2 == 0 else (coexecuted, eager):
                side.run_block(count)
            same = sum(a == b for a, b in zip(eager.losses, coexecuted.losses, strict=True))
            verdict = (
                f"[green]{same} losses equal[/]" if same == first + count else f"[red]{first + count - same} DIFFER[/]"
            )
            progress.update(task, advance=count, verdict=f"{verdict}, loss {eager.losses[-1]:.4f}")
    rows = outrider.report()
    left, right = eager.state(), coexecuted.state()
    unequal = [key for key in left.keys() | right.keys() if key not in left or left[key] != right.get(key)]
    return Result(name, eager, coexecuted, rows, sorted(unequal))


def save_pictures(result: Result, output: Path, console: Console) -> None:
    """Writes the program's trace graph and timeline; says so when graphviz is missing."""
    used = {row["lane"] for row in result.rows}
    for lane in sorted(used & {"inner", "outer"}):
        path = output / f"{result.name}_{lane}.svg"
        try:
            outrider.save_graph(path, lane=lane)
        except (RuntimeError, OSError) as error:
            console.print(f"  no picture of the {lane} lane's graph: {error}", markup=False)
            path = outrider.save_graph(path.with_suffix(".mmd"), lane=lane)
        console.print(f"  {path}")
    console.print(f"  {outrider.save_timeline(output / f'{result.name}_timeline.json')}  (open in ui.perfetto.dev)")


def lanes_text(result: Result) -> str:
    """Lane -> steps after warm-up, as one line."""
    names = [row["lane"] for row in result.rows[WARM_UP_STEPS:]]
    return ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names)))


def print_summary(results: list[Result], console: Console) -> None:
    """The table at the end: equality, coverage and speed as measured in this run."""
    table = Table(title="Eager and co-executed, measured in this run (medians after 20 steps)")
    for heading in ("program", "bits", "covered", "lanes (steps)", "eager ms", "coexec ms", "speed-up", "overlap ms"):
        table.add_column(heading, justify="left" if heading in ("program", "bits", "lanes (steps)") else "right")
    for result in results:
        bits = "[green]all equal[/]" if not result.unequal else f"[red]{len(result.unequal)} differ[/]"
        ratio = result.eager_ms / result.coexec_ms
        table.add_row(
            result.name,
            bits,
            f"{100 * result.covered_share:.1f} %",
            lanes_text(result),
            f"{result.eager_ms:.2f}",
            f"{result.coexec_ms:.2f}",
            f"{ratio:.2f}x",
            f"{result.overlap_ms:.2f}",
        )
    console.print(table)
    console.print(
        "Every step reads its loss, and there is no GPU here: the graph runner shares the CPU with the program.\n"
        "'overlap' is the time per step in which both worked at once. Gains need launch-bound programs and free cores.",
        highlight=False,
    )


def run(steps: int, output: Path) -> int:
    """Runs the whole demo; returns the exit code, 1 when a single bit differed."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    find_programs()
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    started = time.perf_counter()
    results = []
    for name in PROGRAMS:
        console.rule(f"{name}: {steps} steps, in turns of {BLOCK}")
        results.append(run_program(name, steps, console))
        outrider.explain(last=8)
        save_pictures(results[-1], output, console)
        for key in results[-1].unequal[:10]:
            console.print(f"[red]  differs: {key}[/]")
    console.rule("Result")
    print_summary(results, console)
    console.print(f"{picture.draw(results, output / 'coexec.png')}, {time.perf_counter() - started:.0f} s in all")
    return 1 if any(result.unequal for result in results) else 0
