"""Far more work than the engine can do: what it still finishes in time, and how fast it refuses the rest."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from outrider.serve.replay import compare
from outrider.serve.replay.drive import RunResult, run
from outrider.serve.replay.figures import Goal, figures
from outrider.serve.replay.load import Load
from outrider.serve.replay.load_file import Prepared

SHARES = (0.6, 0.8, 1.0, 1.2, 5.0)
KEPT_MIN = 0.9  # of the best goodput, at the highest share
REFUSED_S_MAX = 0.05  # p99


@dataclass(frozen=True)
class Plan:
    """`open_engine(goal)` gives an engine that refuses what would miss the goal; no prefix cache, for rows repeat."""

    open_engine: Callable[[Goal | None], tuple[Any, type[Exception]]]
    prepared: Prepared
    shares: Sequence[float] = SHARES
    seconds: float = 30.0  # that requests keep coming
    factors: tuple[float, float] = (compare.TTFT_FACTOR, compare.TPOT_FACTOR)
    about: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = print


def overload(plan: Plan) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    calibrate = compare.Plan(
        lambda _: plan.open_engine(None), plan.prepared, factors=plan.factors, about=plan.about, say=plan.say
    )
    found = compare.begin(calibrate)
    goal, most = Goal(**found["goal"]), found["saturation_requests_per_s"]
    rows = []
    for share in plan.shares:
        result = _at(plan, goal, share * most)
        one = {"rate_share": share, **figures(result, goal)}
        rows.append(one)
        plan.say(_line(one))
    peak, last = max(row["goodput_tokens_per_s"] for row in rows), rows[-1]
    verdict = {
        "peak_goodput_tokens_per_s": peak,
        "kept_of_peak": last["goodput_tokens_per_s"] / peak if peak else None,
        "kept_of_peak_min": KEPT_MIN,
        "refused_s_p99": last["refused_s_p99"],
        "refused_s_p99_max": REFUSED_S_MAX,
    }
    return {**found, "goal": asdict(goal), "shares": rows, "verdict": verdict, "done": True}


def repeated(prepared: Prepared, rate: float, seconds: float) -> tuple[Prepared, list[float]]:
    """The rows again and again, at `rate` for `seconds`, and when each is due."""
    count = max(compare.ROWS_MIN, round(rate * seconds))
    rows, prompts, due = [], [], []
    times, period = _times(prepared.load)
    for number in range(count):
        turn, place = divmod(number, len(prepared.prompts))
        rows.append(prepared.load.rows[place])
        prompts.append(prepared.prompts[place])
        due.append((turn * period + times[place]) / rate)
    return Prepared(Load(prepared.load.name, rows), prompts), due


def _times(load: Load) -> tuple[list[float], float]:
    """Arrivals at one request a second on average, and when the rows begin again."""
    span = load.rows[-1].arrival_s
    scale = (len(load.rows) - 1) / span if span else 0.0
    return [row.arrival_s * scale for row in load.rows], float(len(load.rows))


def _at(plan: Plan, goal: Goal, rate: float) -> RunResult:
    prepared, due_s = repeated(plan.prepared, rate, plan.seconds)
    engine, rejected = plan.open_engine(goal)
    lengths = [row.written_tokens for row in prepared.load.rows]
    try:
        return run(engine, rejected, prepared.prompts, lengths, due_s, limit_s=10 * plan.seconds + 60)
    finally:
        engine.close()


def _line(one: dict[str, Any]) -> str:
    refused = one["refused_s_p99"]
    late = f", p99 after {1000 * refused:.2f} ms" if refused is not None else ""
    head = f"{one['rate_share']:g}: {one['goodput_tokens_per_s']:.1f} good tokens/s, {one['rejected']} refused{late}"
    return f"{head}, {one['ended_late']} ended before their first token"
