"""One picture of the demo: losses on top of each other, and where each step's time went."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.demo.coexec import Result

_EAGER = "#888888"
_HOST = "#1f77b4"
_WAIT = "#c6dbef"
_RUNNER = "#2ca02c"


def draw(results: list["Result"], path: Path) -> Path:
    """Draws a column per program and saves it; returns the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(results), figsize=(4.6 * len(results), 7), squeeze=False)
    for column, result in enumerate(results):
        _draw_losses(axes[0][column], result)
        _draw_times(axes[1][column], result)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _draw_losses(axis, result: "Result") -> None:
    axis.plot(result.eager.losses, color=_EAGER, linewidth=3, label="eager")
    axis.plot(result.coexecuted.losses, color=_RUNNER, linewidth=1, linestyle="--", label="co-executed")
    verdict = "bit for bit equal" if not result.unequal else f"{len(result.unequal)} values differ"
    axis.set_title(f"{result.name}: {verdict}")
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.legend()


def _draw_times(axis, result: "Result") -> None:
    steps = range(len(result.rows))
    wait_ms = [row["host_wait_us"] / 1e3 for row in result.rows]
    work_ms = [row["host_us"] / 1e3 - wait for row, wait in zip(result.rows, wait_ms, strict=True)]
    axis.bar(steps, work_ms, width=1.0, color=_HOST, label="host works")
    axis.bar(steps, wait_ms, width=1.0, bottom=work_ms, color=_WAIT, label="host waits")
    axis.plot(
        [row["runner_busy_us"] / 1e3 for row in result.rows], color=_RUNNER, linewidth=1, label="graph runner works"
    )
    axis.plot(result.eager.step_ms, color=_EAGER, linewidth=2, label="eager, whole step")
    axis.set_title(f"covered {100 * result.covered_share:.1f} % of the device operations")
    axis.set_xlabel("step")
    axis.set_ylabel("ms per step")
    axis.set_ylim(bottom=0, top=3 * max(result.eager_ms, result.coexec_ms))
    axis.legend(fontsize="small")
